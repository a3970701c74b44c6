"""Where a store is, locally or behind any URL that fsspec knows, and reading from there."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

import fsspec
from zarr.abc.store import Store as ZarrStore
from zarr.storage import FsspecStore, LocalStore

from engine.errors import StrataError
from engine.store.local_files import local_root, open_local, read_local

__all__ = ["Location"]


@dataclass(frozen=True)
class Location:
    """A store's address; cheap to copy and to send to another process.

    Attributes
    ----------
    url
        A local path or an fsspec URL (``s3://bucket/store``, ``memory://store``), without trailing slash.
    """

    url: str

    @classmethod
    def of(cls, url: str | os.PathLike[str]) -> "Location":
        """Take a URL, or a path; paths are made absolute, because another process may work in another folder."""
        text = os.fspath(url)
        return cls(text.rstrip("/") if "://" in text else str(Path(text).expanduser().absolute()))

    @property
    def is_local(self) -> bool:
        """Whether the store lies on this machine, or where its file system is mounted."""
        return local_root(self.url) is not None

    def read(self, relative: str, limit: int) -> bytes:
        """Read one file whole.

        Parameters
        ----------
        relative
            Its path in the store.
        limit
            How many bytes it may have.

        Raises
        ------
        StrataError
            When it is not there, is longer, or is a link.
        """
        root = local_root(self.url)
        if root is not None:
            return self._read_local(root, relative, limit)
        filesystem, top = fsspec.url_to_fs(self.url)
        with self._naming(relative):
            content = bytes(filesystem.cat_file(f"{top}/{relative}", end=limit + 1))
        self._check_length(relative, len(content), limit)
        return content

    def _read_local(self, root: str, relative: str, limit: int) -> bytes:
        with self._naming(relative):
            content = read_local(root, relative, limit)
        self._check_length(relative, len(content), limit)
        return content

    @contextmanager
    def opened(self, relative: str) -> Iterator[BufferedIOBase]:
        """Open one file for reading piece by piece.

        Raises
        ------
        StrataError
            When it is not there, or is a link.
        """
        root = local_root(self.url)
        with self._naming(relative):
            if root is not None:
                file: BufferedIOBase = open_local(root, relative)
            else:
                filesystem, top = fsspec.url_to_fs(self.url)
                file = filesystem.open(f"{top}/{relative}", "rb")
        with file:
            yield file

    @contextmanager
    def _naming(self, relative: str) -> Iterator[None]:
        """Name the store and the file where it is not there."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise StrataError(f"{self.url} has no {relative}: it is not a strata store, or damaged") from error

    def _check_length(self, relative: str, length: int, limit: int) -> None:
        if length > limit:
            raise StrataError(
                f"{self.url}/{relative} has more than {limit:,} bytes, which no strata writes: it is damaged or was "
                "made to do harm"
            )

    def read_all(self, folder: str, suffix: str, limit: int) -> dict[str, bytes]:
        """Read all files of one folder whose names end in ``suffix``, by name, in name order.

        Raises
        ------
        StrataError
            When one has more than ``limit`` bytes, or is a link.
        """
        root = local_root(self.url)
        if root is not None:
            names = sorted(name for name in _names_in(f"{root}/{folder}") if name.endswith(suffix))
            return {name: self._read_local(root, f"{folder}/{name}", limit) for name in names}
        filesystem, top = fsspec.url_to_fs(self.url)
        filesystem.invalidate_cache(f"{top}/{folder}")  # parts are added while a store is open elsewhere
        try:
            listed = filesystem.ls(f"{top}/{folder}", detail=True)
        except FileNotFoundError:
            return {}
        sizes = {entry["name"]: entry["size"] for entry in listed if entry["name"].endswith(suffix)}
        for path, size in sizes.items():
            self._check_length(f"{folder}/{path.rsplit('/', 1)[-1]}", size, limit)
        if not sizes:
            return {}
        paths = sorted(sizes)
        contents = filesystem.cat(paths)
        found = contents if isinstance(contents, dict) else {paths[0]: contents}
        return {path.rsplit("/", 1)[-1]: bytes(found[path]) for path in paths}

    def sizes(self, folder: str) -> dict[str, int | None]:
        """Bytes of every file below a folder, by path relative to it; None for what is no file, such as a link."""
        root = local_root(self.url)
        if root is not None:
            top = f"{root}/{folder}"
            paths = [Path(base, name) for base, folders, names in os.walk(top) for name in (*folders, *names)]
            found = {path.relative_to(top).as_posix(): path.lstat() for path in paths}
            return {
                name: status.st_size if stat.S_ISREG(status.st_mode) else None
                for name, status in found.items()
                if not stat.S_ISDIR(status.st_mode)
            }
        filesystem, root = fsspec.url_to_fs(self.url)
        top = f"{root}/{folder}"
        listed = filesystem.find(top, detail=True)
        start = len(filesystem._strip_protocol(top)) + 1
        return {name[start:]: entry["size"] for name, entry in listed.items()}

    def zarr_store(self, relative: str) -> ZarrStore:
        """Open a Zarr store for reading."""
        root = local_root(self.url)
        if root is not None:
            return LocalStore(f"{root}/{relative}", read_only=True)
        return FsspecStore.from_url(f"{self.url}/{relative}", read_only=True)


def _names_in(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
