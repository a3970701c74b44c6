"""How figures show phases: numerals and tints that stay with a phase in every pattern, grey where not supported."""

from collections.abc import Sequence
from typing import Any

from analyses.phase_detection import Phase

__all__ = ["FAINT", "STRONG", "boundary_colours", "full_name", "numeral", "shade", "tint"]

STRONG, FAINT = "0.15", "0.6"

_RISE, _DECLINE = "#009E73", "#CC79A7"
# By the first word of the name: the same phase, the same colour in every pattern; of segments without a numeral, which
# alternate, the same direction.
_TINTS = {"I": "#56B4E9", "I+II": "#56B4E9", "II": "#E69F00", "III": _RISE, "IV": _DECLINE}
_TINTS |= {"Rise": _RISE, "Decline": _DECLINE}
_UNSUPPORTED: Any = {"facecolor": "0.95", "hatch": "/////"}


def numeral(phase: Phase) -> str:
    """Return the numeral that the phase's name begins with, else its number."""
    first = phase.name.split(" ")[0]
    return first if set(first) <= set("IV+") else str(phase.phase)


def full_name(phase: Phase) -> str:
    """Return the name with its number before it, where it has no numeral of its own."""
    return phase.name if numeral(phase) != str(phase.phase) else f"{phase.phase} {phase.name}"


def tint(phase: Phase) -> str:
    """Colour of a phase, supported or not."""
    return _TINTS[phase.name.split(" ")[0]]


def shade(phase: Phase) -> Any:
    """Style of a patch; hatched where the phase is not supported."""
    return {"facecolor": tint(phase), "alpha": 0.35} if phase.supported else _UNSUPPORTED


def boundary_colours(phases: Sequence[Phase]) -> list[str]:
    """Colour of each phase's end: strong between supported phases; the last one ends with the model."""
    after = [*(phase.supported for phase in phases[1:]), True]
    return [STRONG if phase.supported and following else FAINT for phase, following in zip(phases, after, strict=True)]
