"""What each further prompt adds where prompts share their image's prefix.

Added is the growth of everything under ``parts/`` but the manifests, from one prompt to all of them; own is what the
tokens of the further prompts take at the bytes per token of the store of one prompt. Rows are counted exactly;
compression leaves a few percent. Hidden states alone: pooled states have a row per sample, whatever is shared.
"""

from collections.abc import Iterator
from pathlib import Path

from engine.store import Store, open_store
from tests.bench.random_llava import PROMPTS, build_llava, extract_all, plan_extraction, write_images
from tests.bench.rows import Goal, Row

__all__ = ["run"]


def run(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Measure both dtypes."""
    dim, blocks, images = (256, 2, 2) if quick else (1024, 4, 4)
    records = write_images(folder / "images", images)
    for dtype in ("float16", "bfloat16"):
        model = build_llava(dim=dim, blocks=blocks, dtype=dtype)
        stores = []
        for prompts in (1, len(PROMPTS)):
            extraction = plan_extraction(
                model,
                folder / f"{dtype}-{prompts}",
                folder / "images",
                records,
                prompts=prompts,
                images_per_part=images,
                batch_size=4,
                tensors=("residual",),
            )
            extract_all(extraction)
            stores.append(open_store(extraction.store))
        yield _row(dtype, *stores)


def _row(dtype: str, one: Store, many: Store) -> Row:
    own_tokens, further = _own_tokens(many), len(many.samples) - len(one.samples)
    images = len(one.samples)
    assert _tokens(many) == _tokens(one) + own_tokens  # rows are exact: nothing of the prefix is stored again
    own = _bytes(one) * own_tokens / _tokens(one)
    return Row(
        f"bytes that each further prompt adds, {dtype}",
        (_bytes(many) - _bytes(one)) / own,
        f"bytes of its own {own_tokens / further:.0f} tokens, {own / further / 1e3:,.0f} kB; a "
        f"whole sample has {_tokens(one) / images:.0f} tokens and takes {_bytes(one) / images / 1e3:,.0f} kB",
        Goal(0.97, 1.03),
    )


def _tokens(store: Store) -> int:
    return sum(part.tokens for part in store.parts)


def _own_tokens(store: Store) -> int:
    """Tokens behind the shared prefix of all prompts but each image's first."""
    further = store.samples[store.samples.duplicated("image_id")]
    return sum(segments[-1]["stop"] - segments[-1]["start"] for segments in further["segments"])


def _bytes(store: Store) -> int:
    """Bytes of everything under ``parts/`` but the manifests."""
    return sum(entry["bytes"] for part in store.parts for entry in part.manifest["files"].values())
