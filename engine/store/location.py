"""Where a store is, locally or behind any URL that fsspec knows, and reading from there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path

import fsspec
import zarr
from fsspec.implementations.local import LocalFileSystem
from zarr.abc.store import Store as ZarrStore
from zarr.storage import FsspecStore, LocalStore

from engine.errors import StrataError

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

    def read(self, relative: str) -> bytes:
        """Read one file whole.

        Raises
        ------
        StrataError
            When it is not there.
        """
        filesystem, root = fsspec.url_to_fs(self.url)
        with self._naming(relative):
            return bytes(filesystem.cat_file(f"{root}/{relative}"))

    @contextmanager
    def opened(self, relative: str) -> Iterator[BufferedIOBase]:
        """Open one file for reading piece by piece.

        Raises
        ------
        StrataError
            When it is not there.
        """
        filesystem, root = fsspec.url_to_fs(self.url)
        with self._naming(relative):
            file = filesystem.open(f"{root}/{relative}", "rb")
        with file:
            yield file

    @contextmanager
    def _naming(self, relative: str) -> Iterator[None]:
        """Name the store and the file where it is not there."""
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise StrataError(f"{self.url} has no {relative}: it is not a strata store, or damaged") from error

    def read_all(self, folder: str, suffix: str) -> dict[str, bytes]:
        """Read all files of one folder whose names end in ``suffix``, by name, in name order."""
        filesystem, root = fsspec.url_to_fs(self.url)
        filesystem.invalidate_cache(f"{root}/{folder}")  # parts are added while a store is open elsewhere
        try:
            listed = filesystem.ls(f"{root}/{folder}", detail=False)
        except FileNotFoundError:
            return {}
        paths = sorted(path for path in listed if path.endswith(suffix))
        if not paths:
            return {}
        contents = filesystem.cat(paths)
        found = contents if isinstance(contents, dict) else {paths[0]: contents}
        return {path.rsplit("/", 1)[-1]: bytes(found[path]) for path in sorted(found)}

    def zarr_store(self, relative: str) -> ZarrStore:
        """Open a Zarr store for reading."""
        filesystem, root = fsspec.url_to_fs(self.url)
        if isinstance(filesystem, LocalFileSystem):
            return LocalStore(f"{root}/{relative}", read_only=True)
        return FsspecStore.from_url(f"{self.url}/{relative}", read_only=True)

    def open_group(self, relative: str, path: str = "") -> zarr.Group:
        """Open a Zarr group for reading."""
        return zarr.open_group(self.zarr_store(relative), path=path, mode="r", zarr_format=3)

    def open_array(self, relative: str, path: str) -> zarr.Array:
        """Open one array of a Zarr group for reading, without what the group says of its others."""
        return zarr.open_array(self.zarr_store(relative), path=path, mode="r", zarr_format=3)
