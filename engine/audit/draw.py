"""Which samples are audited: the same on every machine, spread over the parts."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

__all__ = ["draw_samples"]


def draw_samples(sample_ids: Sequence[str], parts: Sequence[int], *, count: int, seed: int) -> list[int]:
    """Draw rows of the sample table: one of each part before a second of any, by a hash of seed and sample id.

    Parameters
    ----------
    sample_ids, parts
        Of every stored sample.
    count
        Samples to draw; all where there are no more.
    seed
        Another seed draws others.

    Returns
    -------
    list of int
        Row numbers, ascending.
    """
    keys = [hashlib.sha256(f"{seed}/{name}".encode()).digest() for name in sample_ids]
    turns: dict[int, int] = defaultdict(int)
    order = []
    for row in sorted(range(len(keys)), key=keys.__getitem__):
        order.append((turns[parts[row]], keys[row], row))
        turns[parts[row]] += 1
    return sorted(row for _, _, row in sorted(order)[:count])
