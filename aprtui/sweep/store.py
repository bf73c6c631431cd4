"""Where results lie: a folder, or any URL that fsspec opens. What is there is whole.

A file is written beside its name and renamed, or put as one object. A folder's files come first
and the list of them last, ``NAME.json``: without its list a folder is not there. Two who write the
same name write the same bytes, since names are made of what the bytes were computed from.
"""

from __future__ import annotations

import errno
import importlib
import json
import posixpath
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aprtui.errors import BadFileError, EngineError
from aprtui.formats.atomic import whole_file
from aprtui.formats.files import read_whole
from aprtui.formats.strict_json import parse_object
from aprtui.text import clean

__all__ = [
    "FolderStore",
    "Store",
    "UrlStore",
    "document_bytes",
    "fetch_url",
    "is_url",
    "open_store",
]

MOST_BYTES = 256 << 20  # of a document
_LIST = "aprtui-sweep-folder-v1"
_AT_ONCE = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "memory", "oci", "oss", "r2"}
"""Protocols whose put makes an object appear whole; elsewhere a file is moved into its place."""


def is_url(where: str) -> bool:
    return "://" in where or where.startswith("memory:")


def document_bytes(document: Any) -> bytes:
    """JSON of equal values is of equal bytes."""
    text = json.dumps(document, ensure_ascii=True, allow_nan=False, indent=1)
    return (text + "\n").encode()


class Store:
    """What both kinds can do. Names are relative, with slashes: ``cells/KEY.json``.

    All raise EngineError where the store cannot be reached or written.
    """

    where: str

    def read(self, name: str) -> bytes | None:
        """The file's bytes, None where it is not there."""
        raise NotImplementedError

    def write(self, name: str, raw: bytes) -> None:
        """The whole file, in place of an older one."""
        raise NotImplementedError

    def put_file(self, name: str, path: Path) -> None:
        raise NotImplementedError

    def get_file(self, name: str, path: Path) -> None:
        raise NotImplementedError

    def document(self, name: str) -> dict[str, Any] | None:
        """The JSON object of that name; None where it is not there. Raises BadFileError."""
        raw = self.read(name)
        return None if raw is None else parse_object(Path(self.at(name)), raw, "the results' JSON")

    def put_document(self, name: str, document: Any) -> None:
        self.write(name, document_bytes(document))

    def at(self, name: str) -> str:
        """The place of a name, for people."""
        return f"{self.where.rstrip('/')}/{name}"

    def holds_folder(self, name: str) -> bool:
        return self.read(f"{name}.json") is not None

    def put_folder(self, name: str, folder: Path) -> None:
        """Every file below ``folder``, then the list of them."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
        for path, relative in zip(files, sizes, strict=True):
            self.put_file(f"{name}/{relative}", path)
        self.put_document(f"{name}.json", {"schema": _LIST, "files": sizes})

    def get_folder(self, name: str, folder: Path) -> None:
        """A copy of a whole folder, made under another name and renamed. Raises BadFileError."""
        sizes = self._listed(name)
        partial = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.part")
        try:
            for relative, size in sizes.items():
                target = partial / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                self.get_file(f"{name}/{relative}", target)
                if target.stat().st_size != size:
                    raise BadFileError(self.at(f"{name}/{relative}"), "was cut short")
            partial.rename(folder)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):  # somebody else was first
                return
            raise EngineError(f"{clean(str(folder))}: cannot be written: {error}") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _listed(self, name: str) -> dict[str, int]:
        found = self.document(f"{name}.json")
        files = None if found is None or found.get("schema") != _LIST else found.get("files")
        if not isinstance(files, dict) or not files:
            raise BadFileError(self.at(name), "the results hold no such capture")
        for relative, size in files.items():
            parts = relative.split("/")
            if type(size) is not int or not all(parts) or {".", ".."} & set(parts):
                raise BadFileError(self.at(f"{name}.json"), "the list of files is damaged")
        return files


class FolderStore(Store):
    """A folder of this machine, or of a file system that all nodes share."""

    def __init__(self, root: Path) -> None:
        self.root, self.where = root, str(root)

    def read(self, name: str) -> bytes | None:
        try:
            return read_whole(self.root / name, MOST_BYTES, "a document")
        except BadFileError as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                return None
            raise

    def write(self, name: str, raw: bytes) -> None:
        with self._file(name) as file:
            file.write(raw)

    def put_file(self, name: str, path: Path) -> None:
        with self._file(name) as file, path.open("rb") as source:
            shutil.copyfileobj(source, file, 1 << 20)

    def get_file(self, name: str, path: Path) -> None:
        shutil.copyfile(self.root / name, path)

    @contextmanager
    def _file(self, name: str) -> Iterator[Any]:
        hint = "free space or choose another place for the results (-o)"
        with whole_file(self.root / name, parents=True, hint=hint) as file:
            yield file


class UrlStore(Store):
    """Any file system of fsspec, by its URL."""

    def __init__(self, url: str) -> None:
        self.where = url
        with _reached(url):
            fsspec: Any = importlib.import_module("fsspec")  # torch brings it
            self._fs, self._root = fsspec.url_to_fs(url)
        said = self._fs.protocol
        self._at_once = bool(_AT_ONCE & {said, *(() if isinstance(said, str) else said)})

    def __reduce__(self) -> tuple[Any, ...]:
        return UrlStore, (self.where,)  # a file system's connections stay where they are

    def read(self, name: str) -> bytes | None:
        with _reached(self.at(name)):
            self._fs.invalidate_cache()
            try:
                raw: bytes = self._fs.cat_file(self._path(name))
            except (FileNotFoundError, NotADirectoryError):
                return None
        return raw

    def write(self, name: str, raw: bytes) -> None:
        with self._placing(name) as path:
            self._fs.pipe_file(path, raw)

    def put_file(self, name: str, path: Path) -> None:
        with self._placing(name) as target:
            self._fs.put_file(str(path), target)

    def get_file(self, name: str, path: Path) -> None:
        with _reached(self.at(name)):
            self._fs.get_file(self._path(name), str(path))

    def _path(self, name: str) -> str:
        return posixpath.join(self._root, name)

    @contextmanager
    def _placing(self, name: str) -> Iterator[str]:
        """Where to put the bytes so that the name shows them whole."""
        path = self._path(name)
        with _reached(self.at(name)):
            if self._at_once:
                yield path
                return
            self._fs.makedirs(posixpath.dirname(path), exist_ok=True)
            partial = f"{path}.{secrets.token_hex(8)}.part"
            yield partial
            self._fs.mv(partial, path)


def fetch_url(url: str, target: Path) -> None:
    """A copy of the file, or of the folder's files, behind a URL. Raises EngineError."""
    with _reached(url):
        fsspec: Any = importlib.import_module("fsspec")
        fs, root = fsspec.url_to_fs(url)
        if fs.isfile(root):
            fs.get_file(root, str(target))
            return
        files = fs.find(root)
        if not files:
            raise EngineError(f"{clean(url)}: nothing is there")
        for file in files:
            place = target / posixpath.relpath(file, root)
            place.parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(file, str(place))


@contextmanager
def _reached(where: str) -> Iterator[None]:
    """Whatever a file system of somebody else's raises, as one error of ours."""
    try:
        yield
    except ImportError as error:
        raise EngineError(
            f"{clean(where)}: no package here opens such a URL: {clean(str(error), 200)}",
            hint="pip install s3fs for s3://, gcsfs for gs://",
        ) from error
    except (FileNotFoundError, NotADirectoryError, EngineError):
        raise
    except Exception as error:
        said = clean(f"{type(error).__name__}: {error}", 300)
        raise EngineError(
            f"{clean(where)}: the results cannot be reached: {said}",
            hint="again when they can be: a sweep goes on with --resume",
        ) from error


def open_store(where: str | Path) -> Store:
    """The store at a folder's path or a URL. Raises EngineError."""
    return UrlStore(str(where)) if is_url(str(where)) else FolderStore(Path(where))
