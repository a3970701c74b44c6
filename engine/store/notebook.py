"""How a notebook shows a store: what was run, how complete it is, and a row per array; every text escaped."""

from collections.abc import Sequence
from html import escape

from engine.store.summary import ArraySummary, StoreSummary

__all__ = ["store_html"]

_UNITS = ("B", "kB", "MB", "GB", "TB")


def store_html(summary: StoreSummary) -> str:
    """Write a summary as HTML without styles of its own, so that it looks as the notebook's tables do."""
    record = summary.record
    model, source = record["model"], record.get("source", {})
    prompts = ", ".join(prompt["prompt_id"] for prompt in record.get("prompts", ()))
    facts = {
        "model": f"{model.get('id', 'unknown')}, {model.get('dtype', 'unknown dtype')}, {model['blocks']} blocks",
        "source": f"{source.get('kind', 'unknown')}, {source.get('images', 'unknown number of')} images",
        "prompts": prompts or "unknown",
        "samples": f"{summary.samples:,} of {summary.planned_samples:,} planned, {len(summary.bad_samples):,} bad; "
        f"{summary.tokens:,} tokens",
        "parts": f"{summary.committed_parts:,} of {summary.planned_parts:,}, {_bytes(summary.stored_bytes)}",
        "format": str(record["format_version"]),
    }
    head = "".join(f"<tr><th>{name}</th><td>{escape(text)}</td></tr>" for name, text in facts.items())
    data = [array for array in summary.arrays if len(array.dims) > 1]
    rows = "".join(_row(_cells(array)) for array in data)
    heads = "".join(f"<th>{name}</th>" for name in ("array", "dimensions", "stored as", "captured as", "on disk"))
    return (
        f"<div><b>Store</b> {escape(summary.url)}<table>{head}</table>"
        f"<details><summary>{len(data)} arrays, beside coordinates</summary>"
        f"<table><tr>{heads}</tr>{rows}</table></details></div>"
    )


def _cells(array: ArraySummary) -> tuple[str, ...]:
    dims = " × ".join(f"{dim} {length:,}" for dim, length in zip(array.dims, array.shape, strict=True))
    return array.path, dims, array.dtype, array.captured_dtype, _bytes(array.stored_bytes)


def _row(cells: Sequence[str]) -> str:
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def _bytes(count: float) -> str:
    for unit in _UNITS[:-1]:
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} {_UNITS[-1]}"
