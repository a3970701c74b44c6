"""Colours of prompt groups, the same in every figure: Okabe and Ito's, a fixed one for each built-in kind."""

from collections.abc import Sequence

from analyses.prompt_groups import PromptGroup

__all__ = ["prompt_colours"]

_KINDS = {"normal": "#0072B2", "question": "#009E73", "noisy": "#D55E00", "empty": "#CC79A7"}
_OTHERS = ("#E69F00", "#56B4E9", "#999999", "#F0E442")


def prompt_colours(groups: Sequence[PromptGroup]) -> dict[PromptGroup, str]:
    """Give each group a colour; those of the user's own prompts follow each other in order of appearance."""
    others = [group for group in dict.fromkeys(groups) if group.kind not in _KINDS]
    own = {group: _OTHERS[number % len(_OTHERS)] for number, group in enumerate(others)}
    return {group: _KINDS.get(group.kind) or own[group] for group in groups}
