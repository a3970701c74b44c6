"""What whoever reads norm-attention should be told: queries that samples do not have, and images without a grid."""

import numpy as np

from analyses.norm_attention_results import StoreAttention
from analyses.resources import Resources

__all__ = ["tell_of_missing"]


def tell_of_missing(item: StoreAttention, resources: Resources) -> None:
    """Say how many samples have no row of a query, and how many are in no patch map."""
    identity, result = item
    total = len(result.samples)
    for number, query in enumerate(result.queries):
        missing = int(np.isnan(result.values["attention"][:, number]).all(axis=(1, 2)).sum())
        if missing:
            resources.tell(
                f"{identity.store}: {missing} of {total} samples have no query {query}; they are NaN and in no mean"
            )
    if result.maps.grid is None:
        resources.tell(f"{identity.store} holds no grid that shows a whole image, so there is no map over patches")
