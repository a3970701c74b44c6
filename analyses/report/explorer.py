"""The explorer of patches: as many images as the page has room for, each packed on its own and unpacked when chosen."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from analyses.prompt_groups import prompt_groups
from analyses.report.lens_words import read_words, words_of_sample
from analyses.report.packing import pack
from analyses.report.results import Results
from analyses.report.section import Figure
from engine.store import Store

__all__ = ["NO_PICTURES", "Explorer", "make_explorer", "words_table"]

_MEANING = "The hidden state of a patch through the model's final norm and unembedding: best pieces, and their logits."
NO_PICTURES = "The store keeps no pictures, so the grid stands alone: strata extract --thumbnails adds them."


class Explorer(NamedTuple):
    """What the page needs of it.

    Attributes
    ----------
    entries : list of dict
        ``label`` and ``store`` of each, and ``picture``, its place among the page's pictures.
    packed : list of str
        The words of each, see `lens_words.words_of_sample`.
    notes : list of str
    """

    entries: list[dict[str, Any]]
    packed: list[str]
    notes: list[str]

    @property
    def figure(self) -> Figure:
        """The figure that stands in the section of LogitLens."""
        return Figure("lens-explorer", "What each patch says", (), (_MEANING, *self.notes), explorer=True)


def words_table(results: Results) -> Path:
    """Where the words of all patches are."""
    return results.folder / "logit-lens-words.parquet"


def make_explorer(
    results: Results,
    stores: Mapping[int, Store],
    images: Sequence[str],
    pictures: Sequence[Mapping[str, Any]],
    most_bytes: int,
) -> Explorer:
    """Pack images while there is room.

    Parameters
    ----------
    results : Results
    stores : mapping
        By their place in the results.
    images : sequence of str
        Chosen ones, in order.
    pictures : sequence of mapping
        The page's: ``s`` and ``image`` say of what, ``href`` may be None.
    most_bytes : int
        Of all packed words together; one image is shown even where it takes more.
    """
    explorer = Explorer([], [], [])
    shown, used, full = set(), 0, False
    places = {(row["s"], row["name"]): number for number, row in enumerate(pictures)}
    for s, image, label, words in _words(results, stores, images):
        if words is None:
            explorer.notes.append(f"No grid shows the whole of image {image}, so its patches are not shown.")
            continue
        packed = pack(words)
        used += len(packed)
        if used > most_bytes and explorer.entries:
            full = True
            break
        shown.add(image)
        explorer.entries.append({"label": label, "store": results.labels[s], "picture": places[s, image]})
        explorer.packed.append(packed)
    if any(pictures[entry["picture"]]["href"] is None for entry in explorer.entries):
        explorer.notes.append(NO_PICTURES)
    if full:
        explorer.notes.append(f"The page has room for {len(shown)} of {len(images)} chosen images.")
    return explorer


def _words(
    results: Results, stores: Mapping[int, Store], images: Sequence[str]
) -> Iterator[tuple[int, str, str, dict[str, Any] | None]]:
    """Yield image after image, of every store its samples that are decoded by themselves."""
    chosen = {s: _samples(results, s, store, images) for s, store in stores.items()}
    words = {
        s: read_words(words_table(results), results.identities[s].store, samples["sample_id"].tolist())
        for s, samples in chosen.items()
    }
    for image in images:
        for s, store in stores.items():
            for _, sample in chosen[s][chosen[s]["image_id"] == image].iterrows():
                if sample["sample_id"] in words[s]:
                    depends = results.identities[s].image_states_depend_on_prompt is not False
                    label = f"{image} · {sample['prompt_id']}" if depends else image
                    yield s, image, label, words_of_sample(store, sample, words[s][sample["sample_id"]])


def _samples(results: Results, s: int, store: Store, images: Sequence[str]) -> pd.DataFrame:
    """First sample of each chosen image; where image states depend on the prompt, the first of each prompt group."""
    own = store.samples[store.samples["image_id"].isin(list(images))]
    if results.identities[s].image_states_depend_on_prompt is False:
        return own.drop_duplicates("image_id")
    firsts = [own[chosen].drop_duplicates("image_id") for _, chosen in prompt_groups(own)]
    return pd.concat(firsts).sort_index() if firsts else own
