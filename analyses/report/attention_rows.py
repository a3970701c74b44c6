"""Norm-attention as rows: shares of roles, the map of block and position, and where queries look on the patches."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import xarray as xr

from analyses.figure_style import LayerAxis
from analyses.image_attention import read_sample_attention
from analyses.key_places import SEGMENTS
from analyses.prompt_groups import prompt_groups
from analyses.report.packing import Rows, number, numbers
from analyses.report.pictures import frame_of
from analyses.report.results import Results, groups_of, stores_of
from engine.store import Store

__all__ = ["SINKS", "image_rows", "mean_rows", "place_rows", "role_rows", "segment_rows"]

_SHARES = {"norm": ("attention_norm_share", "sink_norm_share"), "weight": ("attention_share", "sink_share")}
_IMAGE_QUERY = "last_image"
SINKS = "position 0 and BOS"
_MOST_IMAGE_COLUMNS = 96
_TEXT_PART, _WIDEST = 0.7, 0.04  # of the width of the image: all text tokens together, and one of them


def _curves(results: Results) -> Iterator[tuple[int, int, xr.Dataset]]:
    dataset = results.datasets["norm-attention"]
    for place, (store, group) in enumerate(zip(stores_of(dataset), groups_of(dataset), strict=True)):
        yield results.place(store), results.groups.index(group), dataset.isel(curve=place)


def role_rows(results: Results, axis: LayerAxis) -> Rows:
    """Row per store, prompt group, query, block and role.

    Returns
    -------
    list of dict
        Places ``s``, ``g``, ``q``; ``role``, among them what position 0 and BOS take whatever their role; ``block``,
        ``x`` on the shared axis; ``norm`` and ``weight``, shares of the row, means over images, and with
        ``_std`` their standard deviations.
    """
    rows: Rows = []
    for s, g, own in _curves(results):
        mean, std = (own[name].transpose("measure", "query", "block", "role") for name in ("curve_mean", "curve_std"))
        at = {name: number for number, name in enumerate(own["measure"].values.tolist())}
        roles = own["role"].values.tolist()
        for q in range(own.sizes["query"]):
            for b, block in enumerate(own["block"].values.tolist()):
                x = number(axis.at(np.array([block]), results.blocks[s])[0])
                common = {"s": s, "g": g, "q": q, "block": block, "x": x}
                for r, role in enumerate(roles):
                    values = {
                        f"{name}{end}": number(array.values[at[share], q, b, r])
                        for end, array in (("", mean), ("_std", std))
                        for name, (share, _) in _SHARES.items()
                    }
                    if any(values[name] for name in _SHARES):
                        rows.append({**common, "role": role, **values})
                sinks = {name: float(mean.values[at[share], q, b].sum()) for name, (_, share) in _SHARES.items()}
                if np.isfinite(list(sinks.values())).any():
                    rows.append({**common, "role": SINKS, **{name: number(value) for name, value in sinks.items()}})
    return rows


def place_rows(results: Results) -> Rows:
    """Row per store, prompt group, query, block and column of positions.

    Returns
    -------
    list of dict
        Places ``s``, ``g``, ``q``; ``block``; ``left`` and ``right`` of the column, of the whole width, text wider than
        image tokens;
        ``segment`` of `key_places.SEGMENTS` and ``where`` in words; ``norm`` and ``weight``, mean share of the
        row; null where there is nothing. Where an image has many tokens, a column is the mean of as many neighbours as
        it says.
    """
    rows: Rows = []
    for s, g, own in _curves(results):
        seen = own["position_samples"].values.max(axis=0) > 0
        segment, offset = own["place_segment"].values[seen], own["place_offset"].values[seen]
        columns = _columns(segment.tolist(), offset.tolist())
        wide = _text_width(segment)
        shares = own["position_map"].transpose("map_measure", "query", "block", "place").values[..., seen]
        at = {name: number for number, name in enumerate(own["map_measure"].values.tolist())}
        for q in range(own.sizes["query"]):
            if not np.isfinite(shares[:, q]).any():
                continue
            filled = np.nan_to_num(shares[:, q])
            widths = [last - first if segment[first] == "image" else wide for first, last, _ in columns]
            ends = np.round(np.cumsum([0, *widths]) / sum(widths), 5).tolist()
            for (first, last, name), left, right in zip(columns, ends, ends[1:], strict=False):
                for b, block in enumerate(own["block"].values.tolist()):
                    means = {
                        key: number(filled[at[share], b, first:last].mean(), 3) or None
                        for key, (share, _) in _SHARES.items()
                    }
                    edges = {"left": left, "right": right, "segment": str(segment[first])}
                    rows.append({"s": s, "g": g, "q": q, "block": block, **edges, "where": name, **means})
    return rows


def segment_rows(places: Rows) -> Rows:
    """Row per store, prompt group and segment of the columns of `place_rows`: ``left``, ``middle``, ``right``."""
    found: dict[tuple[int, int, str], tuple[float, float]] = {}
    for row in places:
        key = row["s"], row["g"], row["segment"]
        left, right = found.get(key, (row["left"], row["right"]))
        found[key] = min(left, row["left"]), max(right, row["right"])
    return [
        {"s": s, "g": g, "segment": segment, "left": left, "middle": (left + right) / 2, "right": right}
        for (s, g, segment), (left, right) in found.items()
    ]


def _columns(segment: Sequence[str], offset: Sequence[int]) -> list[tuple[int, int, str]]:
    """First and last place (excluded) of each column, and what it is."""
    images = segment.count("image")
    step = -(-images // _MOST_IMAGE_COLUMNS) if images else 1
    words = {"before": "before the image", "image": "image token", "after": "after the image", "end": "template's end"}
    columns = []
    for name in SEGMENTS:
        own = [number for number, other in enumerate(segment) if other == name]
        width = step if name == "image" else 1
        for start in range(0, len(own), width):
            group = own[start : start + width]
            ends = [str(offset[group[0]]), str(offset[group[-1]])]
            span = " to ".join(dict.fromkeys(ends))
            columns.append((group[0], group[-1] + 1, f"{words[name]} {span}"))
    return columns


def _text_width(segment: np.ndarray) -> float:
    image = max(1, int((segment == "image").sum()))
    text = max(1, int((segment != "image").sum()))
    return float(np.clip(_TEXT_PART * image / text, 1, max(1, _WIDEST * image)))


def mean_rows(results: Results) -> Rows:
    """Row per store, prompt group, query and block: shares of all patches, mean over samples; picture 0.

    Returns
    -------
    list of dict
        As of `image_rows`.
    """
    rows: Rows = []
    for s, g, own in _curves(results):
        at = {name: number for number, name in enumerate(own["map_measure"].values.tolist())}
        maps = own["patch_map"].transpose("map_measure", "query", "block", "patch_row", "patch_col").values
        for q in range(own.sizes["query"]):
            there = np.isfinite(maps[:, q])
            if not there.any():
                continue
            height, width = (int(np.flatnonzero(there.any(axis=axes)).max()) + 1 for axes in ((0, 1, 3), (0, 1, 2)))
            for b, block in enumerate(own["block"].values.tolist()):
                shares = {name: maps[at[share], q, b, :height, :width] for name, (share, _) in _SHARES.items()}
                grid = _place(height, width, (0, 0, 1, 1), width / height)
                common = {"s": s, "g": g, "q": q, "p": 0, "prompt": results.titles[g], "block": block}
                rows.append({**common, **grid, **_flat(shares)})
    return rows


def image_rows(results: Results, stores: Mapping[int, Store], images: Sequence[str], most: int) -> Rows:
    """Row per store, image, prompt group, query and block: shares of all patches; picture 1, 2, ….

    Of an image's samples each prompt group shows its first.

    Parameters
    ----------
    results : Results
    stores : mapping
        By their place in the results.
    images : sequence of str
    most : int
        Values of all rows together; further images are left out.

    Returns
    -------
    list of dict
        Places ``s``, ``g``, ``q``, ``p`` (of the picture, 0 being none); ``g`` is None where the query is an image
        token that does not see the prompt, whose row stands for all groups; ``prompt``, id of the sample's prompt;
        ``block``; ``rows``, ``cols`` of the grid; ``left``, ``top``, ``cell_width``, ``cell_height`` in a square that
        the picture fills; ``norm`` and ``weight``, flat lists of shares, 0 where there is nothing.
    """
    rows: Rows = []
    left = most
    for p, image in enumerate(images, start=1):
        for s, store in stores.items():
            own = [{**row, "p": p} for row in _rows_of_image(results, s, store, image)]
            left -= sum(len(row[side]) for row in own for side in _SHARES)
            if left < 0 and rows:
                return rows
            rows += own
    return rows


def _rows_of_image(results: Results, s: int, store: Store, image: str) -> Rows:
    dataset = results.datasets["norm-attention"]
    without_sinks, queries = bool(dataset.attrs["without_sinks"]), dataset["query"].values.tolist()
    shared = {_IMAGE_QUERY} if results.identities[s].image_states_depend_on_prompt is False else set()
    samples = store.samples[store.samples["image_id"] == image]
    rows: Rows = []
    done: set[str] = set()
    for group, chosen in prompt_groups(samples) if len(samples) else ():
        sample = samples[chosen].iloc[0]
        found = read_sample_attention(store, sample, without_sinks=without_sinks)
        frame = frame_of(sample)
        if found is None or frame is None or group not in results.groups:
            continue
        grid = _place(frame.rows, frame.cols, frame.box, frame.aspect)
        for place, query in enumerate(found.queries):
            if query in done:
                continue
            g = None if query in shared else results.groups.index(group)
            common = {"s": s, "g": g, "q": queries.index(query), "prompt": found.prompt_id if g is not None else ""}
            for b, block in enumerate(found.blocks.tolist()):
                weight, norm = found.shares[:, place, b]
                rows.append({**common, "block": block, **grid, **_flat({"norm": norm, "weight": weight})})
        done |= shared & set(found.queries)
    return rows


def _flat(shares: Mapping[str, np.ndarray]) -> dict[str, list[float | None]]:
    return {name: numbers(np.nan_to_num(values).ravel(), 3) for name, values in shares.items()}


def _place(rows: int, cols: int, box: Sequence[float], aspect: float) -> dict[str, float]:
    """Where a grid lies in a square that its picture fills, centred."""
    wide, high = min(1.0, aspect), min(1.0, 1 / aspect)
    left, top, width, height = box
    return {
        "rows": rows,
        "cols": cols,
        "left": round((1 - wide) / 2 + left * wide, 5),
        "top": round((1 - high) / 2 + top * high, 5),
        "cell_width": round(width * wide / cols, 6),
        "cell_height": round(height * high / rows, 6),
    }
