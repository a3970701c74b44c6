from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPImageProcessorPil, LlavaImageProcessorPil
from transformers.image_transforms import center_crop, get_resize_output_image_size

from engine.errors import StrataError
from engine.models.geometry import Box, Exact, Preprocessing, ShortestEdge, covered_box, preprocessing_of

PLAIN = {"do_rescale": False, "do_normalize": False}
CLIP = {"size": {"shortest_edge": 56}, "crop_size": {"height": 56, "width": 56}}
PROCESSORS = {
    "clip": CLIPImageProcessorPil(**CLIP, **PLAIN),
    "crop smaller": CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 41, "width": 56}, **PLAIN),
    "crop larger": CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size={"height": 57, "width": 56}, **PLAIN),
    "exact": CLIPImageProcessorPil(size={"height": 40, "width": 56}, do_center_crop=False, **PLAIN),
    "crop alone": CLIPImageProcessorPil(do_resize=False, crop_size={"height": 33, "width": 30}, **PLAIN),
    "neither": CLIPImageProcessorPil(do_resize=False, do_center_crop=False, **PLAIN),
    "padded": LlavaImageProcessorPil(do_pad=True, image_mean=[0, 0, 0], **CLIP, **PLAIN),
}
SIZES = [(80, 60), (60, 80), (73, 73), (101, 37), (37, 200), (56, 56), (57, 56), (20, 31)]


def ramp(width: int, height: int) -> Image.Image:
    """Make an image whose red is the pixel's column and whose green is its row; blue marks it from padding."""
    pixels = np.full((height, width, 3), 200, np.uint8)
    pixels[..., 0] = np.arange(width)
    pixels[..., 1] = np.arange(height)[:, None]
    return Image.fromarray(pixels)


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_every_output_pixel_comes_from_where_the_box_says(name: str, width: int, height: int) -> None:
    processor = PROCESSORS[name]
    out = np.asarray(processor(ramp(width, height))["pixel_values"][0], float)
    rows, columns = out.shape[1:]
    box = covered_box(width, height, **preprocessing_of(processor)._asdict())
    x = box.x0 + (np.arange(columns) + 0.5) * (box.x1 - box.x0) / columns
    y = box.y0 + (np.arange(rows) + 0.5) * (box.y1 - box.y0) / rows
    # Bicubic resampling reaches two output pixels far; nearer to an edge of the image the ramp bends.
    x_reach, y_reach = 2 * (x[1] - x[0]) + 1, 2 * (y[1] - y[0]) + 1
    inner_x = (x > x_reach) & (x < width - x_reach)
    inner_y = (y > y_reach) & (y < height - y_reach)
    assert inner_x.any()
    assert inner_y.any()
    inner = out[:, inner_y][:, :, inner_x]
    assert np.abs(inner[0] - (x[inner_x] - 0.5)).max() < 1
    assert np.abs(inner[1] - (y[inner_y] - 0.5)[:, None]).max() < 1
    outside_x = (x < -x_reach) | (x > width + x_reach)
    outside_y = (y < -y_reach) | (y > height + y_reach)
    outside = outside_x[None, :] | outside_y[:, None]
    assert (out[2][outside] == 0).all()


@given(
    *(st.integers(1, 300),) * 2, st.integers(1, 60), st.tuples(st.integers(1, 80), st.integers(1, 80)), st.booleans()
)
def test_box_against_transformers_own_index_arithmetic(width, height, edge, crop, resizes) -> None:
    """Crop an array of indices as transformers does; the box must start and end at these indices."""
    new_height, new_width = height, width
    if resizes:
        image = np.zeros((1, height, width))
        new_height, new_width = get_resize_output_image_size(image, edge, False, input_data_format="channels_first")
    rows, columns = np.arange(new_height), np.arange(new_width)
    indices = np.stack(np.broadcast_arrays(rows[:, None] + 1, columns[None, :] + 1, 1))  # 0 is padding
    kept = center_crop(indices, crop, data_format="channels_first", input_data_format="channels_first")
    assert kept.shape[1:] == crop
    i, j = np.argwhere(kept[2]).min(axis=0)
    top, left = kept[0, i, j] - 1 - i, kept[1, i, j] - 1 - j

    box = covered_box(width, height, resize=ShortestEdge(edge) if resizes else None, crop=crop)
    in_resized = np.array(box) * np.array([new_width / width, new_height / height] * 2)
    np.testing.assert_allclose(in_resized, [left, top, left + crop[1], top + crop[0]], atol=1e-9)


def test_llava_15_on_a_photograph() -> None:
    """LLaVA-1.5 on 640 × 480: resized to 448 × 336, 56 columns cut from either side, 80 pixels of the original."""
    box = covered_box(640, 480, resize=ShortestEdge(336), crop=(336, 336))
    assert box == pytest.approx(Box(80, 0, 560, 480))


def test_settings_are_read() -> None:
    read = {name: preprocessing_of(processor) for name, processor in PROCESSORS.items()}
    assert read == {
        "clip": Preprocessing(False, ShortestEdge(56), (56, 56)),
        "crop smaller": Preprocessing(False, ShortestEdge(64), (41, 56)),
        "crop larger": Preprocessing(False, ShortestEdge(40), (57, 56)),
        "exact": Preprocessing(False, Exact(40, 56), None),
        "crop alone": Preprocessing(False, None, (33, 30)),
        "neither": Preprocessing(False, None, None),
        "padded": Preprocessing(True, ShortestEdge(56), (56, 56)),
    }
    as_dicts = SimpleNamespace(do_resize=True, size={"height": 3, "width": 4}, do_center_crop=None, crop_size=None)
    assert preprocessing_of(as_dicts) == Preprocessing(False, Exact(3, 4), None)
    assert preprocessing_of(object()) == Preprocessing(False, None, None)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"do_resize": True}, "size"),
        ({"do_resize": True, "size": 224}, "size"),
        ({"do_resize": True, "size": {"shortest_edge": 224, "longest_edge": 300}}, "size"),
        ({"do_resize": True, "size": {"max_height": 224, "max_width": 300}}, "size"),
        ({"do_resize": True, "size": {"height": 224}}, "size"),
        ({"do_center_crop": True, "crop_size": {"shortest_edge": 224}}, "crop_size"),
        ({"do_pad": True}, "do_pad"),
    ],
)
def test_unknown_geometry_is_refused(settings: dict[str, object], name: str) -> None:
    with pytest.raises(StrataError, match=f"has {name} = .*preprocessor_config"):
        preprocessing_of(SimpleNamespace(**settings))
