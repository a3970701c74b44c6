"""What norm-attention computes of one part: a task that travels to a thread or a cluster's worker."""

from dataclasses import dataclass

from analyses.prompt_groups import PromptGroup

__all__ = ["ARRAYS", "AttentionTask"]

ARRAYS = ("key/attention", "key/attention_norm")
"""What is read: weights of heads, which are averaged, and norms of the weighted sums of values."""


@dataclass(frozen=True)
class AttentionTask:
    """What to compute of which part.

    Attributes
    ----------
    url, name
        The store's address and the part's name.
    groups
        The store's prompt groups, over whose samples maps are averaged.
    without_sinks
        Whether shares in maps are of what remains without sinks.
    """

    url: str
    name: str
    groups: tuple[PromptGroup, ...]
    without_sinks: bool

    def depends(self) -> tuple[object, ...]:
        """Return all that the result depends on, beside the part's content."""
        return (tuple(map(tuple, self.groups)), self.without_sinks)
