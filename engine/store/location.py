"""Where a store is, locally or behind any URL that fsspec knows, and reading from there."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path, PurePosixPath

import fsspec
from fsspec import AbstractFileSystem
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
        filesystem, root = fsspec.url_to_fs(self.url)
        with self._naming(relative):
            self._check_local(filesystem, root, relative)
            path, end = f"{root}/{relative}", limit + 1
            if isinstance(filesystem, LocalFileSystem):
                end = min(end, filesystem.size(path) + 1)  # Python makes room for as many bytes as a read asks for
            content = bytes(filesystem.cat_file(path, end=end))
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
        filesystem, root = fsspec.url_to_fs(self.url)
        with self._naming(relative):
            self._check_local(filesystem, root, relative)
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

    def _check_length(self, relative: str, length: int, limit: int) -> None:
        if length > limit:
            raise StrataError(
                f"{self.url}/{relative} has more than {limit:,} bytes, which no strata writes: it is damaged or was "
                "made to do harm"
            )

    def _check_local(self, filesystem: AbstractFileSystem, root: str, relative: str) -> None:
        """Refuse what is not a file of the store itself: links lead out of it, and a pipe is waited for without end."""
        if not isinstance(filesystem, LocalFileSystem):
            return
        path = Path(root)
        for name in PurePosixPath(relative).parts:
            path /= name
            if path.is_symlink():
                raise StrataError(f"{path} is a symbolic link: a store holds its own bytes, see strata verify")
        if path.exists() and not path.is_file():
            raise IsADirectoryError(path)

    def read_all(self, folder: str, suffix: str, limit: int) -> dict[str, bytes]:
        """Read all files of one folder whose names end in ``suffix``, by name, in name order.

        Raises
        ------
        StrataError
            When one has more than ``limit`` bytes, or is a link.
        """
        filesystem, root = fsspec.url_to_fs(self.url)
        filesystem.invalidate_cache(f"{root}/{folder}")  # parts are added while a store is open elsewhere
        try:
            listed = filesystem.ls(f"{root}/{folder}", detail=True)
        except FileNotFoundError:
            return {}
        entries = {entry["name"]: entry for entry in listed if entry["name"].endswith(suffix)}
        paths = sorted(entries)
        for path in paths:
            relative = f"{folder}/{path.rsplit('/', 1)[-1]}"
            with self._naming(relative):
                self._check_local(filesystem, root, relative)
            self._check_length(relative, entries[path]["size"], limit)
        if not paths:
            return {}
        contents = filesystem.cat(paths)
        found = contents if isinstance(contents, dict) else {paths[0]: contents}
        return {path.rsplit("/", 1)[-1]: bytes(found[path]) for path in sorted(found)}

    def sizes(self, folder: str) -> dict[str, int | None]:
        """Bytes of every file below a folder, by path relative to it; None for what is no file, such as a link."""
        filesystem, root = fsspec.url_to_fs(self.url)
        top = f"{root}/{folder}"
        if isinstance(filesystem, LocalFileSystem):
            paths = [Path(base, name) for base, folders, names in os.walk(top) for name in (*folders, *names)]
            found = {path.relative_to(top).as_posix(): path.lstat() for path in paths}
            return {
                name: status.st_size if stat.S_ISREG(status.st_mode) else None
                for name, status in found.items()
                if not stat.S_ISDIR(status.st_mode)
            }
        listed = filesystem.find(top, detail=True)
        start = len(filesystem._strip_protocol(top)) + 1
        return {name[start:]: entry["size"] for name, entry in listed.items()}

    def zarr_store(self, relative: str) -> ZarrStore:
        """Open a Zarr store for reading."""
        filesystem, root = fsspec.url_to_fs(self.url)
        if isinstance(filesystem, LocalFileSystem):
            return LocalStore(f"{root}/{relative}", read_only=True)
        return FsspecStore.from_url(f"{self.url}/{relative}", read_only=True)
