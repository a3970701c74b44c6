"""Figure of contextualization: per store and prompt kind, the three mean curves with their band over images."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analyses.contextualization_results import StoreResult
from analyses.curves import band, image_curves, ordered_kinds
from analyses.figure_style import NOTE, PAIR_COLOURS, PAIR_NAMES, STYLE, layer_axis, panels

__all__ = ["draw_contextualization"]

_BAND_NOTE = "Line and band: mean and standard deviation over images."
_IDENTITY_NOTE = (
    "Image states of this model do not see the prompt: its image–image\n"
    "curve is the same for every prompt by construction and drawn once."
)

_NORMED: Any = {"marker": "o", "markerfacecolor": "white", "markersize": 3.5}


def draw_contextualization(results: Sequence[StoreResult]) -> Figure:
    """Draw one panel per store and prompt kind.

    Where image states cannot depend on the prompt, the image-image curve of all prompts is an identity and no finding:
    it is drawn in the store's first panel only, and a note says so. Rows with self-pairs are not drawn. A hollow
    marker at the last layer is its value after the final norm.
    """
    jobs = [(item, kind) for item in results for kind in ordered_kinds(item.result.samples["prompt_kind"])]
    noted = any(_prompt_free(item) for item in results) and len(jobs) > len(results)
    notes = [_BAND_NOTE, _IDENTITY_NOTE] if noted else [_BAND_NOTE]
    figure, axes = panels([1.3] * len(jobs), extra=0.55 + 0.25 * noted)
    with mpl.rc_context(STYLE):
        seen: set[str] = set()
        for ax, (item, kind) in zip(axes, jobs, strict=True):
            without = {"image-image"} if _prompt_free(item) and item.identity.store in seen else set()
            images = _draw_panel(ax, item, kind, without)
            where = kind if len(results) == 1 else f"{item.identity.store} · {kind}"
            ax.set_title(f"{where} ({images} images)", loc="left", pad=3)
            seen.add(item.identity.store)
        low = min(ax.get_ylim()[0] for ax in axes)
        high = max(ax.get_ylim()[1] for ax in axes)
        same_layers = len({ax.get_xlim() for ax in axes}) == 1
        for ax in axes:
            ax.set_ylim(low, high)  # panels are there to be compared
            if same_layers:
                ax.label_outer()
        figure.legend(
            *_legend(axes), loc="outside upper center", ncols=4, frameon=False, handlelength=1.4, columnspacing=1.0
        )
        figure.supylabel("mean cosine similarity", fontsize=7)
        figure.supxlabel("\n".join(notes), **NOTE)
    return figure


def _prompt_free(item: StoreResult) -> bool:
    return item.identity.image_states_depend_on_prompt is False


def _legend(axes: Sequence[Axes]) -> tuple[list[Artist], list[str]]:
    entries: dict[str, Artist] = {
        label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    if any(line.get_marker() == "o" for ax in axes for line in ax.lines):
        entries["after final norm"] = Line2D([], [], color="0.3", linestyle="none", **_NORMED)
    return list(entries.values()), list(entries)


def _draw_panel(ax: Axes, item: StoreResult, kind: str, without: set[str]) -> int:
    """Draw the curves; return how many images the most complete one has."""
    result = item.result
    chosen = (result.samples["prompt_kind"] == kind).to_numpy()
    images = result.samples["image_id"][chosen]
    most = 0
    for row, (pair, self_pairs) in enumerate(result.rows):
        if self_pairs or pair in without:
            continue
        curve = band(image_curves(images, result.cosine[chosen, :, row])[1])
        most = max(most, curve.images)
        colour = PAIR_COLOURS[pair]
        ax.plot(result.layers, curve.mean, color=colour, label=PAIR_NAMES[pair])
        if curve.images > 1:
            low, high = curve.mean - curve.std, curve.mean + curve.std
            ax.fill_between(result.layers, low, high, color=colour, alpha=0.2, linewidth=0)
        if result.normed is not None and curve.images:
            value = image_curves(images, result.normed[chosen, row : row + 1])[1].mean()
            ax.plot(result.layers[-1:], [value], color=colour, clip_on=False, **_NORMED)
    layer_axis(ax, int(result.layers[0]), int(result.layers[-1]))
    return most
