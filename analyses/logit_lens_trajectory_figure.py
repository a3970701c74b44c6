"""Figure of LogitLens' trajectory: how sure each layer is, and how far from the last, for image and text tokens."""

from collections.abc import Sequence
from itertools import product

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from analyses.figure_style import NOTE, STYLE, common_axis, wrap_notes
from analyses.lens_trajectory import MEASURES, WHATS
from analyses.logit_lens_panels import (
    INTERVAL_NOTE,
    PLAIN_NOTE,
    colour_entries,
    draw_curve,
    draw_legend,
    identity_notes,
    lens_curves,
    lens_panels,
)
from analyses.logit_lens_results import GroupCurves, StoreLens

__all__ = ["draw_trajectory"]

_LABELS = {"entropy": "entropy (nat)", "kl": "divergence (nat)"}
_NAMES = {"image": "image tokens", "last_text": "last text token"}
_DIVERGENCE_NOTE = "Divergence: of the last layer's distribution from the layer's own."


def draw_trajectory(results: Sequence[StoreLens], curves: Sequence[Sequence[GroupCurves]]) -> Figure:
    """Draw entropy and divergence, each of image tokens and of the last text token.

    Image tokens stand on the left and the last text token on the right, entropy above divergence, store below store.
    The standard deviation is drawn where a panel has one curve; several would hide each other.

    Parameters
    ----------
    results : sequence of StoreLens
    curves : per store, the curves of its prompt groups
        With trajectories. Image tokens have one curve where they do not see the prompt, the last text token has one
        per prompt group.
    """
    of_whats = [lens_curves(results, curves), lens_curves(results, curves, once=False)]
    several = any(len(own) > 1 for jobs in of_whats for own in jobs)
    plain = [PLAIN_NOTE] if several else []
    notes = wrap_notes([INTERVAL_NOTE, *plain, _DIVERGENCE_NOTE, *identity_notes(of_whats[0])])
    figure, panels = lens_panels(results, (len(MEASURES), len(WHATS)), 0.55 + 0.1 * notes.count("\n"))
    axis = common_axis([(item.result.layers, item.result.block_count) for item in results])
    with mpl.rc_context(STYLE):
        for *jobs, row in zip(*of_whats, panels, strict=True):
            for ax, (measure, what) in zip(row, product(MEASURES, WHATS), strict=True):
                own = jobs[WHATS.index(what)]
                for curve in own:
                    assert curve.curves.trajectory is not None
                    of_panel = curve.curves.trajectory[:, MEASURES.index(measure), WHATS.index(what)]
                    draw_curve(ax, axis, curve, of_panel, alone=len(own) == 1)
                ax.set_ylabel(f"{_NAMES[what]}\n{_LABELS[measure]}", fontsize=6)
                axis.set_on(ax, labelled=ax.get_subplotspec().is_last_row())
        _level(panels)
        draw_legend(figure, colour_entries([own for jobs in of_whats for own in jobs]))
        figure.supxlabel(notes, **NOTE)
    return figure


def _level(panels: NDArray[np.object_]) -> None:
    """Let panels of one measure have one scale, from 0, as they are to be compared."""
    for number in range(len(MEASURES)):
        of_measure = panels[:, number * len(WHATS) : (number + 1) * len(WHATS)].ravel()
        top = max(ax.get_ylim()[1] for ax in of_measure)
        for ax in of_measure:
            ax.set_ylim(0, top)
