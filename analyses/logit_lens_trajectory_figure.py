"""Figure of LogitLens' trajectory: how sure each layer is, and how far from the last, for image and text tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analyses.figure_style import NOTE, STYLE, LayerAxis, common_axis
from analyses.lens_trajectory import MEASURES, WHATS
from analyses.logit_lens_panels import BAND_NOTE, IDENTITY_NOTE, LensCurve, lens_curves, lens_panels
from analyses.logit_lens_results import GroupCurves, StoreLens

__all__ = ["draw_trajectory"]

_LABELS = {"entropy": "entropy (nat)", "kl": "divergence from\nthe last layer (nat)"}
_NAMES = {"image": "image tokens", "last_text": "last text token"}
_LINES: Mapping[str, Any] = {"image": {"linewidth": 1.2}, "last_text": {"linewidth": 0.9, "linestyle": (0, (4, 2))}}


def draw_trajectory(results: Sequence[StoreLens], curves: Sequence[Sequence[GroupCurves]]) -> Figure:
    """Draw entropy and divergence: of one store one above the other, of several a row per store.

    Parameters
    ----------
    results : sequence of StoreLens
    curves : per store, the curves of its prompt groups
        With trajectories. Image tokens have one curve where they do not see the prompt, the last text token has one
        per prompt group.
    """
    images, texts = lens_curves(results, curves), lens_curves(results, curves, once=False)
    blind = any(item.identity.image_states_depend_on_prompt is False for item in results)
    notes = "\n".join([BAND_NOTE, *([IDENTITY_NOTE] if blind else [])])
    figure, panels = lens_panels(results, len(MEASURES), 0.55 + 0.1 * notes.count("\n"))
    axis = common_axis([(item.result.layers, item.result.block_count) for item in results])
    with mpl.rc_context(STYLE):
        for of_images, of_texts, row in zip(images, texts, panels, strict=True):
            for ax, measure in zip(row, MEASURES, strict=True):
                for what, own in zip(WHATS, (of_images, of_texts), strict=True):
                    for curve in own:
                        _draw_curve(ax, axis, curve, measure, what)
                ax.set_ylim(bottom=0)
                ax.set_ylabel(_LABELS[measure])
                axis.set_on(ax, labelled=ax.get_subplotspec().is_last_row())
        entries = {
            one.label: Line2D([], [], color=one.colour) for jobs in (images, texts) for own in jobs for one in own
        }
        entries |= {name: Line2D([], [], color="0.3", **_LINES[what]) for what, name in _NAMES.items()}
        options: Any = {"ncols": 4, "frameon": False, "handlelength": 1.8, "columnspacing": 1.0}
        figure.legend([*entries.values()], [*entries], loc="outside upper center", **options)
        figure.supxlabel(notes, **NOTE)
    return figure


def _draw_curve(ax: Axes, axis: LayerAxis, curve: LensCurve, measure: str, what: str) -> None:
    assert curve.curves.trajectory is not None
    mean, std = curve.curves.trajectory[:2, MEASURES.index(measure), WHATS.index(what)]
    places = axis.at(curve.item.result.layers, curve.item.result.block_count)
    ax.plot(places, mean, color=curve.colour, marker="o" if len(places) == 1 else "", **_LINES[what])
    if np.isfinite(std).all():
        low = np.maximum(mean - std, 0)
        ax.fill_between(places, low, mean + std, color=curve.colour, alpha=0.15, linewidth=0)
