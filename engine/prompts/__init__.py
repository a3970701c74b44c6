"""The instructions asked of every image: published, noisy, empty, or the user's own."""

from engine.prompts.noisy import VocabularyView
from engine.prompts.prompt import Prompt, PromptKind
from engine.prompts.specs import read_prompts

__all__ = ["Prompt", "PromptKind", "VocabularyView", "read_prompts"]
