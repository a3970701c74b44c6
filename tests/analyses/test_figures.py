from collections.abc import Sequence
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from analyses.contextualization_figure import draw_contextualization
from analyses.figure_pages import PAGE_INCHES
from analyses.figure_style import COLUMN_INCHES, PAIR_COLOURS, PAIR_NAMES
from analyses.phases import find_phases
from analyses.phases_figure import draw_phases
from analyses.results import write_figure
from tests.analyses.builders import FLAT, planted_result

SMALLEST = 6  # points
NARROW = ((0, 2, 4, 6, 80), (0.0, 0.1, 0.02, 0.5, 0.3))


def texts(figure: Figure) -> list[Text]:
    """Texts that are drawn, as wide as in the files; matplotlib also keeps labels of ticks outside their axis.

    The figure is laid out once, as it is for its files.
    """
    figure.set_dpi(300)
    FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    outside: set[Text] = set()
    for axis in (axis for ax in figure.axes for axis in (ax.xaxis, ax.yaxis)):
        low, high = sorted(axis.get_view_interval())
        outside |= {tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high}
    return [
        text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip() and text not in outside
    ]


def only(pages: Sequence[Figure]) -> Figure:
    """The page of a figure that has one."""
    (figure,) = pages
    return figure


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in texts(figure))


def assert_nothing_is_cut_or_overlaps(figure: Figure) -> None:
    """Check that a figure can be read in a paper's column: its size, its smallest letters, and room for every text."""
    assert figure.get_figwidth() == COLUMN_INCHES
    assert figure.get_figheight() <= PAGE_INCHES
    shown = texts(figure)
    assert min((text.get_fontsize() for text in shown), default=SMALLEST) >= SMALLEST
    frame = figure.bbox
    boxes = [(text.get_text(), text.get_window_extent()) for text in shown]
    for text, box in boxes:
        assert box.x0 >= frame.x0 - 1 and box.x1 <= frame.x1 + 1, text  # noqa: PT018
        assert box.y0 >= frame.y0 - 1 and box.y1 <= frame.y1 + 1, text  # noqa: PT018
    for n, (text, box) in enumerate(boxes):
        for other_text, other in boxes[n + 1 :]:
            width = min(box.x1, other.x1) - max(box.x0, other.x0)
            height = min(box.y1, other.y1) - max(box.y0, other.y0)
            assert width < 1 or height < 1, f"{text!r} lies on {other_text!r}"


@pytest.mark.parametrize("kinds", [("normal",), ("normal", "question", "noisy", "empty")])
def test_curves_are_labelled_within_a_papers_column(kinds: tuple[str, ...], tmp_path: Path) -> None:
    figure = only(draw_contextualization([planted_result(kinds=kinds)]))
    assert figure.get_figwidth() == COLUMN_INCHES
    assert len(figure.axes) == len(kinds)
    assert_nothing_is_cut_or_overlaps(figure)
    png, svg = write_figure(tmp_path, "x", figure)
    assert matplotlib.image.imread(png).shape[1] == round(COLUMN_INCHES * 300)
    assert b"<svg" in svg.read_bytes()


def drawn_lines(figure: Figure, pair: str) -> int:
    return sum(line.get_label() == PAIR_NAMES[pair] for ax in figure.axes for line in ax.lines)


def test_a_curve_that_cannot_depend_on_the_prompt_is_drawn_once_and_said_so() -> None:
    kinds = ("normal", "question", "noisy")
    free = only(draw_contextualization([planted_result(kinds=kinds, depends=False)]))
    bound = only(draw_contextualization([planted_result(kinds=kinds, depends=True)]))
    assert (drawn_lines(free, "image-image"), drawn_lines(bound, "image-image")) == (1, 3)
    assert (drawn_lines(free, "image-text"), drawn_lines(bound, "image-text")) == (3, 3)
    assert "by construction" in words(free)
    assert "by construction" not in words(bound)


def test_the_drawn_curve_is_the_mean_over_images() -> None:
    item = planted_result(prompts=2)
    lines = only(draw_contextualization([item])).axes[0].lines
    line = next(line for line in lines if line.get_color() == PAIR_COLOURS["image-text"])
    np.testing.assert_allclose(line.get_ydata(), item.result.cosine[:, :, 0].mean(axis=0))


def test_one_image_and_no_text_are_drawn_too() -> None:
    one = planted_result(images=1)
    one.result.cosine[:, :, [0, 2]] = np.nan
    assert_nothing_is_cut_or_overlaps(only(draw_contextualization([one])))


@pytest.mark.parametrize("pattern", ["four", "three", "auto"])
def test_phases_are_named_however_narrow(pattern: str) -> None:
    results = [
        planted_result(kinds=("normal", "noisy")),
        planted_result(NARROW, blocks=80, store="narrow", noise=0.001),
    ]
    figure = only(draw_phases(find_phases(results, pattern=pattern, bootstraps=50)))
    assert_nothing_is_cut_or_overlaps(figure)
    shown = words(figure)
    names = {"four": "III Inter-modal Encoding, 4–6", "three": "III Rise, 4–6", "auto": "III Inter-modal Encoding, 4–6"}
    assert names[pattern] in shown
    assert shown.count("not supported") == 1  # the note that explains the hatching


def test_unsupported_phases_are_marked() -> None:
    found = find_phases([planted_result(FLAT, noise=0.1)], bootstraps=100)
    figure = only(draw_phases(found))
    assert_nothing_is_cut_or_overlaps(figure)
    assert words(figure).count("not supported") == 1 + 4
    hatched = [patch for patch in figure.axes[0].patches if patch.get_hatch()]
    assert len(hatched) == 4


def colour_of(figure: Figure, start: str) -> str:
    return next(str(text.get_color()) for text in texts(figure) if text.get_text().startswith(start))


def dots(figure: Figure) -> list[str]:
    return [str(line.get_color()) for line in figure.axes[0].lines if line.get_marker() == "o"]


def test_a_monotone_curve_does_not_look_like_four_phases() -> None:
    rise = find_phases([planted_result(((0, 40), (0.0, 0.4)), noise=0.02)], bootstraps=100)
    assert [phase.supported for phase in rise[0].detection.phases].count(True) == 2  # two rises, no decline
    figure = only(draw_phases(rise))
    assert_nothing_is_cut_or_overlaps(figure)
    assert "Held-out images prefer 1 segment (rise): try --pattern auto" in words(figure)
    firm = only(draw_phases(find_phases([planted_result()], bootstraps=100)))
    assert "Held-out" not in words(firm)
    assert len(dots(figure)) == len(dots(firm)) == 3
    assert len({*dots(figure), *dots(firm)}) == 2
    for name in ("II Intra", "IV Output"):
        assert colour_of(figure, name) != colour_of(firm, name)


def test_what_held_out_images_prefer_fits_under_its_panel() -> None:
    curve = find_phases([planted_result()], bootstraps=5)[0]
    found = curve.detection
    weak = tuple(phase._replace(supported=False) for phase in found.phases)
    shapes = {"1 segment (decline)": (1, False), "3 segments": (3, True), "a decline first": (4, False)}
    curves = [
        curve._replace(
            detection=found._replace(
                phases=weak, preferred=found.shape._replace(segments=segments, first_rises=first_rises)
            )
        )
        for segments, first_rises in [*shapes.values(), (4, True)]
    ]
    figure = only(draw_phases(curves))
    hints = [text for text in texts(figure) if text.get_text().startswith("Held-out")]
    assert [hint.get_text() for hint in hints] == [
        *(f"Held-out images prefer {wanted}: try --pattern auto" for wanted in shapes),
        "Held-out images prefer 4 segments too, yet not all are supported",
    ]
    for hint, ax in zip(hints, figure.axes, strict=True):
        own, panel = hint.get_window_extent(), ax.get_window_extent()
        assert panel.x0 - 1 <= own.x0 < own.x1 <= panel.x1 + 1


@pytest.mark.parametrize(
    ("supported", "ends"), [("1111", "1111"), ("0111", "0111"), ("1110", "1100"), ("1011", "0011")]
)
def test_a_boundary_is_firm_between_supported_phases_only(supported: str, ends: str) -> None:
    curve = find_phases([planted_result()], bootstraps=5)[0]
    phases = [
        phase._replace(supported=flag == "1") for phase, flag in zip(curve.detection.phases, supported, strict=True)
    ]
    figure = only(draw_phases([curve._replace(detection=curve.detection._replace(phases=tuple(phases)))]))
    strong = colour_of(only(draw_phases([curve])), "I Alignment"), dots(only(draw_phases([curve])))[0]
    shown = [phase.name for phase in phases]
    assert "".join(str(int(colour_of(figure, name) == strong[0])) for name in shown) == supported
    firm_dots = [colour == strong[1] for colour in dots(figure)]
    assert "".join(str(int(firm)) for firm in firm_dots) == ends[:-1]
    assert ("prefer 4 segments too" in words(figure)) == (supported != "1111")


def test_several_panels_are_low_and_name_their_common_axis_once() -> None:
    found = find_phases([planted_result(kinds=("normal", "question", "noisy", "empty"))], bootstraps=20)
    figure = only(draw_phases(found))
    assert_nothing_is_cut_or_overlaps(figure)
    assert figure.get_figheight() <= 4 * 2.1 + 0.6
    assert [ax.get_xlabel() for ax in figure.axes] == ["", "", "", "layer"]
    both = [planted_result(), planted_result(NARROW, blocks=80, store="narrow", noise=0.001)]
    assert [ax.get_xlabel() for ax in only(draw_phases(find_phases(both, bootstraps=5))).axes] == ["layer", "layer"]


def test_without_an_inter_modal_curve_there_is_no_figure() -> None:
    item = planted_result()
    item.result.cosine[:, :, [0, 2]] = np.nan
    assert draw_phases(find_phases([item], bootstraps=5)) == []
