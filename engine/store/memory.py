"""Keeping freed memory in the process, because getting it again costs as much as compressing into it.

glibc returns a freed block of some MiB to the kernel at once, and the next chunk's buffer is then faulted in page by
page. It stops doing so for blocks up to the size of the largest that it has seen freed, at most 32 MiB. With another C
library nothing changes.
"""

import numpy as np

__all__ = ["keep_freed_chunks"]

_LARGEST_THAT_COUNTS = 32 * 2**20 - 2**16


def keep_freed_chunks() -> None:
    """Free one large block, so that chunks reuse memory from then on; its pages are never touched."""
    np.empty(_LARGEST_THAT_COUNTS, np.uint8)
