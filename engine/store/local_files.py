"""Reading files of a store on this machine, in few steps: a store of many parts has tens of thousands of them."""

import os
import stat
from functools import lru_cache
from io import BufferedReader

import fsspec
from fsspec.implementations.local import LocalFileSystem

from engine.errors import StrataError

__all__ = ["local_root", "open_local", "read_local"]


@lru_cache(maxsize=64)
def local_root(url: str) -> str | None:
    """Path of a store on this machine; None where its address is another's."""
    filesystem, root = fsspec.url_to_fs(url)
    return str(root) if isinstance(filesystem, LocalFileSystem) else None


def open_local(root: str, relative: str) -> BufferedReader:
    """Open what is a file of the store itself: links lead out of it, and a pipe is waited for without end.

    Raises
    ------
    StrataError
        When it, or a folder that it lies in, is a link.
    OSError
        When it is not there, or no file.
    """
    path = root
    for name in relative.split("/"):
        path = f"{path}/{name}"
        mode = os.lstat(path).st_mode
        if stat.S_ISLNK(mode):
            raise StrataError(f"{path} is a symbolic link: a store holds its own bytes, see strata verify")
    if not stat.S_ISREG(mode):
        raise IsADirectoryError(path)
    return open(path, "rb")


def read_local(root: str, relative: str, limit: int) -> bytes:
    """Read what `open_local` opens; of a file that is longer than ``limit`` one byte more than that."""
    with open_local(root, relative) as file:
        # Python makes room for as many bytes as a read asks for.
        return file.read(min(os.fstat(file.fileno()).st_size, limit) + 1)
