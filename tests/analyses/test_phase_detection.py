import numpy as np
import pytest
from numpy.typing import NDArray

from analyses.phase_detection import FOUR_PHASES, choose_shape, cut_each, detect, fixed_shape
from analyses.resampling import resample_means, sum_items
from engine.errors import UsageError

LAYERS = np.arange(41)
PLANTED = np.interp(LAYERS, [0, 3, 10, 35, 40], [0.0, 0.1, 0.02, 0.5, 0.3])


def images(curve: NDArray[np.float64], noise: float, count: int = 60, seed: int = 0) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    return curve + rng.normal(0, 0.1, (count, 1)) + rng.normal(0, noise, (count, len(curve)))


def test_planted_phases_are_found_named_and_supported() -> None:
    curves = images(PLANTED, 0.02)
    found = detect(curves, LAYERS, "four", bootstraps=200)
    assert [(p.name, p.start, p.end) for p in found.phases] == [
        ("I Alignment", 0, 3), ("II Intra-modal Encoding", 3, 10),
        ("III Inter-modal Encoding", 10, 35), ("IV Output Preparation", 35, 40),
    ]  # fmt: skip
    assert all(p.supported for p in found.phases)
    mean = curves.mean(axis=0)
    for p in found.phases:
        assert p.change == pytest.approx(mean[p.end] - mean[p.start])
        assert p.change_low < p.change < p.change_high
        assert p.start_low <= p.start <= p.start_high
        assert p.end_low <= p.end <= p.end_high


def test_three_stages_join_the_first_two_phases() -> None:
    curves = images(PLANTED, 0.02)
    four, three = (detect(curves, LAYERS, pattern, bootstraps=100).phases for pattern in ("four", "three"))
    assert [(p.start, p.end) for p in three] == [(0, 10), (10, 35), (35, 40)]
    assert three[0].change == pytest.approx(four[0].change + four[1].change)
    assert three[1][2:] == four[2][2:]
    assert [p.supported for p in three] == [True, True, True]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("walk", [False, True])
def test_noise_has_no_supported_phase(seed: int, walk: bool) -> None:
    noise = images(np.zeros(40), 0.05, seed=seed)
    curves = noise.cumsum(axis=1) if walk else noise
    found = detect(curves - curves.mean(axis=1, keepdims=True), np.arange(1, 41), "four", bootstraps=200)
    assert not any(p.supported for p in found.phases)


def test_a_constant_curve_is_not_supported_and_does_not_crash() -> None:
    for pattern in ("four", "three", "auto"):
        found = detect(np.full((5, 20), 0.25), np.arange(20), pattern, bootstraps=50)
        assert not any(p.supported for p in found.phases)
        assert all(p.change == 0 for p in found.phases)


def test_one_image_gives_boundaries_without_intervals_of_change() -> None:
    found = detect(PLANTED[None], LAYERS, "four", bootstraps=20)
    assert [p.end for p in found.phases] == [3, 10, 35, 40]
    assert all(np.isnan(p.change_low) and not p.supported for p in found.phases)


def test_intervals_widen_with_noise_and_bootstraps_repeat() -> None:
    calm, loud = (detect(images(PLANTED, noise), LAYERS, "four", bootstraps=300) for noise in (0.005, 0.3))
    assert calm.phases[0].end_high - calm.phases[0].end_low < loud.phases[0].end_high - loud.phases[0].end_low
    assert detect(images(PLANTED, 0.3), LAYERS, "four", bootstraps=300) == loud
    assert detect(images(PLANTED, 0.3), LAYERS, "four", bootstraps=300, seed=1) != loud


@pytest.mark.parametrize(
    ("knots", "heights", "segments", "first_rises"),
    [
        ([0, 40], [0, 1], 1, True),
        ([0, 40], [1, 0], 1, False),
        ([0, 20, 40], [0, 1, 0.2], 2, True),
        ([0, 20, 40], [1, 0, 0.8], 2, False),
        ([0, 12, 25, 40], [0, 0.5, 0.1, 1], 3, True),
        ([0, 3, 10, 35, 40], [0, 0.1, 0.02, 0.5, 0.3], 4, True),
    ],
)
def test_auto_finds_the_number_and_direction_of_segments(
    knots: list[int], heights: list[float], segments: int, first_rises: bool
) -> None:
    shape = choose_shape(images(np.interp(LAYERS, knots, heights), 0.05, count=100), seed=0)
    assert (shape.segments, shape.first_rises) == (segments, first_rises)
    assert len(shape.scores) == len(shape.errors) == 5
    assert (shape.phases[0][0] == FOUR_PHASES[0]) == (segments == 4)


def test_auto_finds_one_segment_in_noise_and_needs_few_layers() -> None:
    assert choose_shape(images(np.zeros(40), 0.05), seed=0).segments == 1
    assert len(choose_shape(images(np.zeros(3), 0.05), seed=0).scores) == 2
    assert detect(images(np.zeros(3), 0.05), np.array([0, 8, 16]), "auto", bootstraps=20).phases[0].end == 16


def test_boundaries_are_layer_numbers_of_the_store() -> None:
    layers = LAYERS * 4 + 2
    start, end = cut_each(np.stack([PLANTED, PLANTED[::-1]]), layers, fixed_shape("four"))
    assert start[0].tolist() == [2, 14, 42, 142]
    assert end[0].tolist() == [14, 42, 142, 162]
    np.testing.assert_array_equal(start[:, 1:], end[:, :-1])


def test_too_few_layers_and_unknown_patterns_name_the_next_step() -> None:
    with pytest.raises(
        UsageError, match="at least 5 layers and the curve has 4: capture more layers, or use --pattern auto"
    ):
        detect(np.zeros((3, 4)), np.arange(4), "four")
    with pytest.raises(UsageError, match="--pattern five: expected one of four, three, auto"):
        detect(np.zeros((3, 9)), np.arange(9), "five")
    with pytest.raises(UsageError, match="the curve has 1"):
        detect(np.zeros((3, 1)), np.arange(1), "auto")


def test_intervals_of_change_are_percentiles_of_resamples_cut_and_read_on_the_images_drawn() -> None:
    curves = images(PLANTED[::4], 0.05, count=12)
    found = detect(curves, np.arange(11), "four", bootstraps=80, seed=3)
    rng, changes = np.random.default_rng(3), []
    for _ in range(80):
        times = rng.multinomial(12, np.full(12, 1 / 12))
        mean = np.repeat(curves, times, axis=0).mean(axis=0)
        start, end = cut_each(mean[None], np.arange(11), fixed_shape("four"))
        changes.append(mean[end[0]] - mean[start[0]])
    low, high = np.percentile(changes, (2.5, 97.5), axis=0)
    np.testing.assert_allclose([p.change_low for p in found.phases], low)
    np.testing.assert_allclose([p.change_high for p in found.phases], high)


def test_an_interval_of_noise_excludes_0_and_its_phase_is_still_not_supported() -> None:
    phases = detect(images(np.zeros(40), 0.05), np.arange(40), "four", bootstraps=200).phases
    assert any(p.change_low > 0 or p.change_high < 0 for p in phases)
    assert not any(p.supported for p in phases)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("walk", [False, True])
def test_a_smooth_monotone_curve_is_never_four_phases_and_held_out_images_say_so(seed: int, walk: bool) -> None:
    layers = np.arange(1, 25)
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 0.004, (40, 24))
    curve = 0.1 + 0.3 * (1 - np.exp(-layers / 8))
    curves = curve + rng.normal(0, 0.05, (40, 1)) + (noise.cumsum(axis=1) if walk else noise)
    for values, first_rises in ((curves, True), (-curves, False)):
        found = detect(values, layers, "four", bootstraps=200)
        assert not all(p.supported for p in found.phases)
        assert (found.preferred.segments, found.preferred.first_rises) == (1, first_rises)


def test_blocks_of_draws_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    curves = sum_items(images(PLANTED, 0.1), None)
    whole = resample_means(curves, 50, np.random.default_rng(0))
    monkeypatch.setattr("analyses.resampling._VALUES_AT_ONCE", 130)  # two resamples of 60 images
    for once, cut in zip(whole, resample_means(curves, 50, np.random.default_rng(0)), strict=True):
        np.testing.assert_allclose(cut, once)
