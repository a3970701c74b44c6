"""What each further prompt adds where prompts share their image's prefix.

Added is the growth of everything under ``parts/`` but the manifests, from one prompt to all of them. Own is what the
further prompts' own tokens take when they alone are written as a part. Rows are counted exactly; compression leaves a
few percent. Hidden states alone, because pooled states have a row per sample whatever is shared, and from layer 1 on,
because layer 0 holds embeddings, which every use of a prompt repeats exactly and compression then drops.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from engine.store import Store, open_store, write_part
from tests.bench.random_llava import PROMPTS, build_llava, extract_all, plan_extraction, write_images
from tests.bench.rows import Goal, Row
from tests.bench.stores import states_content

__all__ = ["run"]


def run(folder: Path, *, quick: bool) -> Iterator[Row]:
    """Measure both dtypes."""
    dim, blocks, images = (256, 2, 2) if quick else (1024, 4, 8)
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
                first_layer=1,
            )
            extract_all(extraction)
            stores.append(open_store(extraction.store))
        yield _row(dtype, *stores, folder / f"{dtype}-own")


def _row(dtype: str, one: Store, many: Store, scratch: Path) -> Row:
    states = _own_states(many)
    assert _tokens(many) == _tokens(one) + states.shape[1]  # rows are exact: nothing of the prefix is stored again
    images, further = len(one.samples), len(many.samples) - len(one.samples)
    own = _bytes_alone(states, scratch)
    return Row(
        f"bytes that each further prompt adds, {dtype}",
        (_bytes(many) - _bytes(one)) / own,
        f"bytes of its own {states.shape[1] / further:.0f} tokens written alone, {own / further / 1e3:,.0f} kB; a "
        f"whole sample has {_tokens(one) / images:.0f} tokens and takes {_bytes(one) / images / 1e3:,.0f} kB",
        Goal(0.97, 1.03),
    )


def _tokens(store: Store) -> int:
    return sum(part.tokens for part in store.parts)


def _own_states(store: Store) -> np.ndarray:
    """States (layer, token, dim) behind the shared prefix, of all prompts but each image's first."""
    (part,) = store.parts
    states = np.asarray(part.array("token/hidden_states")[...])
    further = part.samples[part.samples.duplicated("image_id")]
    return np.concatenate([states[:, run[-1]["start"] : run[-1]["stop"]] for run in further["segments"]], axis=1)


def _bytes_alone(states: np.ndarray, scratch: Path) -> int:
    """What these states take in a part of their own."""
    scratch.mkdir()
    content = states_content(0, states.shape, str(states.dtype), lambda layer: np.ascontiguousarray(states[layer]))
    write_part(scratch, content, plan_sha256="0" * 64)
    return sum(path.stat().st_size for path in scratch.rglob("hidden_states/c/**/*") if path.is_file())


def _bytes(store: Store) -> int:
    """Bytes of everything under ``parts/`` but the manifests."""
    return sum(entry["bytes"] for part in store.parts for entry in part.manifest["files"].values())
