"""What estimate says against what extract writes, over every capture, both shapes of sharing and every dtype."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from engine.capture.batch import BatchItem, collate, whole_runs
from engine.capture.forward import capture_batch
from engine.capture.lens import Lens
from engine.capture.prefix_cache import cache_bytes
from engine.capture.prefixes import capture_prefixes
from engine.capture.probe import Probe
from engine.cli.sizes import format_bytes, format_duration
from engine.models.checkpoint import open_checkpoint
from engine.models.load import load_model
from engine.models.prepare import Preparer
from engine.models.work import forward_flops, lens_flops
from engine.plan import CAPTURES
from engine.prompts import Prompt
from engine.prompts.published import published_prompts
from engine.store import model_arrays, open_store
from engine.vocabulary import ROLE_CODES
from tests import tiny_gemma_llava
from tests.engine.cli.conftest import write_images
from tests.tiny_instructblip import save_checkpoint as save_instructblip
from tests.tiny_llava import TinyShape, save_checkpoint

Strata = Callable[..., Result]

BOTH = ("--prompts", "normal:2", "--prompts", "empty")
EVERYTHING = ",".join(CAPTURES)
CONFIGURATIONS = {
    "all": (*BOTH, "--samples-per-part", "6"),
    "one prompt": ("--samples-per-part", "2"),
    "whole prefixes": (*BOTH, "--share-prefix", "off"),
    "pooled": (*BOTH, "--capture", "pooled"),
    "residual": (*BOTH, "--capture", "residual", "--part-bytes", "40KiB"),
    "some layers": (*BOTH, "--layers", "0,2:4"),
    "image tokens": (*BOTH, "--roles", "image"),
    "two roles": (*BOTH, "--roles", "instruction,template"),
    "float16": (*BOTH, "--dtype", "float16"),
    "bfloat16": (*BOTH, "--dtype", "bfloat16"),
    "rounded": (*BOTH, "--mantissa-bits", "6"),
    "attention": (*BOTH, "--capture", "attention"),
    "attention of image tokens": (*BOTH, "--capture", "residual,attention", "--roles", "image"),
    "attention over whole prefixes": (*BOTH, "--capture", "attention", "--share-prefix", "off"),
    "everything": (*BOTH, "--capture", EVERYTHING, "--samples-per-part", "6", "--queries", "last_text,template:-1"),
    "everything in bfloat16": (*BOTH, "--capture", EVERYTHING, "--dtype", "bfloat16"),
    "outputs": (*BOTH, "--capture", "attention-output,mlp-output", "--dtype", "float16"),
    "lens": (*BOTH, "--capture", "lens", "--lens-topk", "3", "--no-unembedding"),
    "lens beside means": (*BOTH, "--capture", "pooled,lens", "--roles", "image", "--dtype", "bfloat16"),
    "no unembedding": (*BOTH, "--no-unembedding"),
    "noisy": ("--prompts", "noisy:3", "--limit", "3"),
}


@pytest.fixture(scope="module", params=["llava", "instructblip"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp(str(request.param))
    save = {"llava": save_checkpoint, "instructblip": save_instructblip}[str(request.param)]
    model = save(folder / "model")
    captions = write_images(folder / "images", 5)
    named = ("--model", model, "--source", "coco", "--annotations", captions, "--images", folder / "images")
    return tuple(map(str, named))


def said(text: str, words: str) -> int:
    """Return the number before these words."""
    return int(text.split(f" {words}", maxsplit=1)[0].rsplit(maxsplit=1)[-1].replace(",", ""))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_bytes_files_and_parts_are_those_that_are_written(
    strata: Strata, run: tuple[str, ...], tmp_path: Path, name: str
) -> None:
    options = (*run, *CONFIGURATIONS[name])
    estimate = strata("estimate", *options)
    assert estimate.exit_code == 0, estimate.output
    out = tmp_path / "store"
    extracted = strata("extract", *options, "--out", out)
    assert extracted.exit_code == 0, extracted.output

    store = open_store(out)
    raw: dict[str, int] = {}
    for part in store.parts:
        for path, array in part.manifest["arrays"].items():
            raw[path] = raw.get(path, 0) + int(np.prod(array["shape"])) * np.dtype(array["dtype"]).itemsize
    tables = [store.model.final_norm_weight, store.model.unembedding]
    written = sum(raw.values()) + sum(table.nbytes for table in tables if table is not None)

    rows = {line.split()[0]: line for line in estimate.stdout.splitlines() if line}
    for path, size in raw.items():
        if path not in rows:
            assert len(store.parts[0].manifest["arrays"][path]["shape"]) == 1
        else:
            assert f"  {format_bytes(size)}  " in rows[path]
    predicted = parse_bytes(" ".join(rows["all"].split()[1:3]))
    assert predicted == pytest.approx(written, rel=0.02)
    assert said(estimate.stdout, "stored tokens") == sum(part.tokens for part in store.parts)
    assert said(estimate.stdout, "part") == len(store.parts)
    assert said(estimate.stdout, "files") == sum(path.is_file() for path in out.rglob("*"))


def parse_bytes(text: str) -> float:
    number, unit = text.split()
    return float(number) * 1024 ** ("B", "KiB", "MiB", "GiB", "TiB").index(unit)


def test_model_tables_are_named_with_their_bias() -> None:
    assert [array.path for array in model_arrays(vocab=0, dim=8, dtype="float16", bias=True)] == [
        "final_norm_weight",
        "final_norm_bias",
    ]


@pytest.mark.parametrize("family", ["llava", "instructblip"])
def test_operations_are_those_that_torch_counts(tmp_path: Path, family: str) -> None:
    shape = TinyShape(blocks=8, dim=64, image_size=32, vision_dim=32)
    folder = save_checkpoint(tmp_path / "m", shape) if family == "llava" else save_instructblip(tmp_path / "m")
    checkpoint = open_checkpoint(str(folder))
    prompt = Prompt("p", "custom", "what is the content of the image, and what is beside the small red circle?")
    prepared = Preparer(checkpoint, [prompt], share_prefix=False).prepare_nominal()
    loaded = load_model(checkpoint, dtype="float32", device="cpu")
    layout = prepared.layouts[0]
    item = BatchItem("a/p", 0, layout, prepared.pixel_values, prepared.side_texts[0], np.ones(len(layout), bool), 0)
    inputs = collate(whole_runs([item]), pad_id=0)
    # torch counts attention only where it is done by matrix products.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loaded.model(**inputs, logits_to_keep=1, use_cache=False)
    assert forward_flops(checkpoint, [len(layout)]) == pytest.approx(counter.get_total_flops(), rel=0.15)
    twice = forward_flops(checkpoint, [len(layout)] * 2)
    assert twice == 2 * forward_flops(checkpoint, [len(layout)])


def test_operations_behind_a_prefix_are_those_that_torch_counts(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(save_checkpoint(tmp_path / "m", TinyShape(blocks=8, dim=64, image_size=32))))
    prompts = [
        Prompt(text, "custom", text) for text in ("What is it?", "what is beside the small red circle?", "Sum up.")
    ]
    prepared = Preparer(checkpoint, prompts, share_prefix=True).prepare_nominal()
    loaded = load_model(checkpoint, dtype="float32", device="cpu")
    items = [
        BatchItem("", 0, layout, prepared.pixel_values, {}, np.ones(len(layout), bool), prepared.prefix)
        for layout in prepared.layouts
    ]
    probe = Probe((0,), residual=True, pooled=False, block_count=8)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        prefixes = capture_prefixes(loaded, items, probe, pad_id=0)
        assert prefixes is not None
        for item in items:
            capture_batch(loaded, [item], probe, pad_id=0, prefixes=prefixes)
    lengths = [len(layout) for layout in prepared.layouts]
    predicted = forward_flops(checkpoint, lengths, prefix=prepared.prefix)
    assert predicted == pytest.approx(counter.get_total_flops(), rel=0.15)
    assert predicted < 0.6 * forward_flops(checkpoint, lengths)
    assert cache_bytes(loaded.language.config, prepared.prefix, 4) == prefixes.cache.nbytes


@pytest.mark.parametrize(("family", "once"), [("llava", True), ("gemma", False), ("instructblip", False)])
def test_keys_and_values_of_prefixes_are_counted_where_these_run_once(
    strata: Strata, tmp_path: Path, family: str, once: bool
) -> None:
    save = {"llava": save_checkpoint, "gemma": tiny_gemma_llava.save_checkpoint, "instructblip": save_instructblip}
    shape = () if family == "instructblip" else (TinyShape(blocks=3),)
    folder = save[family](tmp_path / "model", *shape)
    captions = write_images(tmp_path / "images", 5)
    named = ("--model", folder, "--source", "coco", "--annotations", captions, "--images", tmp_path / "images", *BOTH)
    small, large = (strata("estimate", *named, "--batch-size", size).stdout for size in (1, 4))
    if not once:
        assert "run once" not in large
        return
    config = open_checkpoint(str(folder)).config.get_text_config()
    tokens = int(large.split(" tokens per image that run once")[0].rsplit(maxsplit=1)[-1])
    assert tokens >= 18, "BOS, USER: and the image"
    for text, images in ((small, 1), (large, 4)):
        assert f"of which {format_bytes(cache_bytes(config, images * tokens, 4))} on the device" in text


def test_operations_of_long_sequences_grow_as_torch_counts_them(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(save_checkpoint(tmp_path / "m")))
    loaded = load_model(checkpoint, dtype="float32", device="cpu")
    lengths, counted = (120, 360), []
    for length in lengths:
        with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            loaded.model(input_ids=torch.ones(1, length, dtype=torch.long), logits_to_keep=1, use_cache=False)
        counted.append(counter.get_total_flops())
    # Here attention is most of the work; all that does not grow with the text cancels.
    short, long = (forward_flops(checkpoint, [length]) for length in lengths)
    assert long - short == pytest.approx(counted[1] - counted[0], rel=0.01)


@pytest.mark.parametrize(("dtype", "products"), [("float32", 1), ("bfloat16", 2)])
def test_operations_of_the_lens_are_those_of_its_products(tmp_path: Path, dtype: str, products: int) -> None:
    checkpoint = open_checkpoint(str(save_checkpoint(tmp_path / "m")))
    loaded = load_model(checkpoint, dtype=dtype, device="cpu")
    states = torch.randn(50, checkpoint.dim, dtype=getattr(torch, dtype))
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        Lens.of(checkpoint, loaded, 5).top(states)
    # The CPU takes one product in every dtype; a GPU two in 16 bits.
    assert lens_flops(checkpoint, len(states), dtype) == products * counter.get_total_flops()


def test_the_time_counts_every_state_that_is_decoded(strata: Strata, run: tuple[str, ...], tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text("[lens]\nlayers = '1:4'\nroles = 'image'\n")
    estimate = strata("estimate", *run, "--capture", "residual,lens", "--config", config)
    share = float(estimate.stdout.split(" % of it lens")[0].rsplit(maxsplit=1)[-1]) / 100
    checkpoint = open_checkpoint(run[1])
    (prompt, *_) = published_prompts(checkpoint.family.name, "normal")
    prepared = Preparer(checkpoint, [prompt], share_prefix=False).prepare_nominal()
    images = int((prepared.layouts[0].role == ROLE_CODES["image"]).sum())
    of_lens = lens_flops(checkpoint, 3 * images, "float32")
    whole = of_lens + forward_flops(checkpoint, [len(prepared.layouts[0])])
    assert share == pytest.approx(of_lens / whole, abs=0.006)


def test_time_follows_the_speed_that_is_asked_for(strata: Strata, run: tuple[str, ...]) -> None:
    slow = strata("estimate", *run, "--tflops", "1e-10").stdout
    faster = strata("estimate", *run, "--tflops", "1e-9").stdout
    hours = [float(text.split("without start-up: ")[1].split(" h")[0]) for text in (slow, faster)]
    assert hours[0] == pytest.approx(10 * hours[1], rel=0.1)
    assert strata("estimate", *run, "--tflops", "0").exit_code == 2


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "less than 1 s"), (59.6, "60 s"), (480, "8 min"), (5399, "90 min"), (7200, "2.0 h")]
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words
