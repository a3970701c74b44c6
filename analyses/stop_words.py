"""The English stop words, with the name that results carry.

The list is NLTK's English one, 179 function words, as bm25s ships it: NLTK itself has to download it. Other lists hold
what captions are about (Nothman, Qin and Yurchak 2018, "Stop Word Lists in Free Open-source Software Packages"):
stopwords-iso and stop-words, of some 1300 words each, have "man", "room", "face" and "small"; spaCy's has "front",
"side" and "top". This one has "above", "below", "between", "over" and "under", so a match of words says nothing about
spatial relations.
"""

from importlib.metadata import version

from bm25s.stopwords import STOPWORDS_EN_PLUS

__all__ = ["STOP_WORDS", "STOP_WORDS_NAME"]

STOP_WORDS: frozenset[str] = frozenset(STOPWORDS_EN_PLUS)

STOP_WORDS_NAME = f"NLTK English, as STOPWORDS_EN_PLUS of bm25s {version('bm25s')}"
"""Which list in which version."""
