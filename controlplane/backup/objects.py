"""Where backups lie: a flat space of named objects, in a directory or behind an fsspec URL.

Owns atomic publication: an object is there wholly or not at all, and durable once a call has returned. Knows nothing of
what the objects are. Third-party exceptions stop here. Every call blocks: call it off the loop.

- A directory: written under a temporary name, synced, renamed, the directory synced.
- Anything else: gathered in a local file, then one upload, which such stores make visible at its end.

Credentials never stand in a URL: they come from the environment, in the store's own variables (``AWS_ACCESS_KEY_ID``
and so on) or as fsspec options in :data:`OPTIONS_VARIABLE`, a JSON object. Plain options (``endpoint_url``, ``region``)
may follow the URL as a query.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from controlplane.backup.checks import check_reserve
from controlplane.base.clock import SystemClock
from controlplane.base.errors import ConfigError, StorageError
from controlplane.base.limits import MIB
from controlplane.base.rand import SystemRand

__all__ = ["OPTIONS_VARIABLE", "ObjectStore", "Stored", "is_url", "open_objects"]

OPTIONS_VARIABLE: Final = "QUARTERDECK_ARCHIVE_OPTIONS"
_TEMP_PREFIX: Final = ".tmp-"
#: What is read whole: a manifest, a segment, a pack of segments.
_READ_BYTES_MAX: Final = 96 * MIB
#: A temporary file so old belongs to nobody any more.
_TEMP_AGE_S: Final = 3_600.0
_SECRETS: Final = ("key", "secret", "token", "password", "credential", "sas")
_COPY_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Stored:
    """One object. ``name``: below the folder that was listed. ``size``: bytes."""

    name: str
    size: int


class ObjectStore(Protocol):
    """A place for objects. Names are relative paths with ``/``. Everything raises StorageError when it is refused."""

    @property
    def url(self) -> str:
        """Where it is, for people."""
        ...

    def listing(self, folder: str) -> list[Stored]:
        """Published objects directly in a folder, by name; empty if there is no such folder."""
        ...

    def folders(self) -> list[str]:
        """Names of the folders at the top."""
        ...

    def read(self, name: str) -> bytes:
        """A whole object that is small (and never empty)."""
        ...

    def fetch(self, name: str, target: Path) -> None:
        """Copy an object into a local file."""
        ...

    def writing(self, name: str) -> AbstractContextManager[BinaryIO]:
        """A file to write an object into; it is published when the block ends well, and else never was."""
        ...

    def remove(self, name: str) -> None:
        """Remove an object; one that is gone already is no error."""
        ...

    def locate(self, name: str) -> str:
        """An object's own path or URL, for people."""
        ...


def is_url(location: str) -> bool:
    """Whether a location names a scheme; everything else is a path."""
    return "://" in location


def open_objects(
    location: str, *, scratch: Path | None = None, environment: Mapping[str, str] = os.environ
) -> ObjectStore:
    """The store at a path or URL; nothing is made or asked yet.

    Args:
        scratch: where an upload gathers; by default the system's folder for temporary files.

    Raises:
        ConfigError: the URL has credentials in it, or names a scheme that is not installed.
    """
    if not is_url(location):
        return _Folder(Path(location))
    parts = urlsplit(location)
    if parts.scheme == "file":
        return _Folder(Path(parts.path))
    return _Remote(location, scratch, environment)


class _Folder:
    """Objects as files. Made when first written to, for its owner's eyes only: backups hold secrets."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def url(self) -> str:
        return str(self._root)

    def listing(self, folder: str) -> list[Stored]:
        where = self._root / folder
        found = []
        with _refusals("list", str(where)):
            try:
                with os.scandir(where) as entries:
                    for entry in entries:
                        # One that goes meanwhile (segments put together, old ones removed) says nothing of the others.
                        with contextlib.suppress(FileNotFoundError):
                            if entry.is_file() and not entry.name.startswith("."):
                                found.append(Stored(entry.name, entry.stat().st_size))
            except FileNotFoundError:
                return []
        return sorted(found, key=lambda stored: stored.name)

    def folders(self) -> list[str]:
        with _refusals("list", self.url):
            try:
                with os.scandir(self._root) as entries:
                    return sorted(entry.name for entry in entries if entry.is_dir())
            except FileNotFoundError:
                return []

    def read(self, name: str) -> bytes:
        with _refusals("read", self.locate(name)), (self._root / name).open("rb") as file:
            return _bounded(file.read(_READ_BYTES_MAX + 1), self.locate(name))

    def fetch(self, name: str, target: Path) -> None:
        with _refusals("copy", self.locate(name)), (self._root / name).open("rb") as source, target.open("wb") as out:
            shutil.copyfileobj(source, out, _COPY_BYTES)

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        path = self._root / name
        temporary = path.with_name(f"{_TEMP_PREFIX}{SystemRand().token(8).hex()}")
        with _refusals("write", str(path)):
            _make_folder(path.parent)
            check_reserve(path.parent)
            _sweep(path.parent)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    yield file
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(temporary, path)
                _sync_folder(path.parent)
            finally:
                temporary.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        with _refusals("remove", self.locate(name)):
            (self._root / name).unlink(missing_ok=True)

    def locate(self, name: str) -> str:
        return str(self._root / name)


def _bounded(data: bytes, where: str) -> bytes:
    if len(data) > _READ_BYTES_MAX:
        raise StorageError(f"{where} is bigger than anything that is read whole ({_READ_BYTES_MAX} bytes)")
    return data


def _make_folder(folder: Path) -> None:
    missing = [f for f in (folder, *folder.parents) if not f.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(folder: Path) -> None:
    """Remove what writers left that were killed long ago."""
    for path in folder.glob(f"{_TEMP_PREFIX}*"):
        try:
            if SystemClock().wall_ms() / 1000 - path.stat().st_mtime > _TEMP_AGE_S:
                path.unlink(missing_ok=True)
        except FileNotFoundError:
            continue  # its writer has just published it


@contextmanager
def _refusals(verb: str, where: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot {verb} {where}: {error.strerror or error}", errno=error.errno or 0) from error


class _Remote:
    """Objects behind fsspec."""

    def __init__(self, url: str, scratch: Path | None, environment: Mapping[str, str]) -> None:
        self._scratch = scratch
        bare, options = _options(url, environment)
        self._url = bare
        try:
            from fsspec.core import url_to_fs

            self._fs, root = url_to_fs(bare, **options)
        except ImportError as error:
            scheme = urlsplit(url).scheme
            hint = " (pip install 'quarterdeck[s3]')" if scheme in ("s3", "s3a") else ""
            raise ConfigError(f"{bare}: what speaks {scheme} is not installed{hint}: {error}") from error
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{bare}: {error}") from error
        self._root = str(root).rstrip("/")

    @property
    def url(self) -> str:
        return self._url

    def listing(self, folder: str) -> list[Stored]:
        files = [entry for entry in self._entries(folder) if entry["type"] == "file"]
        found = [Stored(str(entry["name"]).rsplit("/", 1)[-1], int(entry["size"] or 0)) for entry in files]
        return sorted(found, key=lambda stored: stored.name)

    def folders(self) -> list[str]:
        entries = self._entries("")
        return sorted(str(e["name"]).rstrip("/").rsplit("/", 1)[-1] for e in entries if e["type"] == "directory")

    def _entries(self, folder: str) -> list[dict[str, Any]]:
        path = f"{self._root}/{folder}".rstrip("/")
        with _remote_refusals("list", path):
            try:
                self._fs.invalidate_cache()
                entries: list[dict[str, Any]] = self._fs.ls(path, detail=True)
            except FileNotFoundError:
                return []
        return [entry for entry in entries if str(entry["name"]).rstrip("/") != path]

    def read(self, name: str) -> bytes:
        with _remote_refusals("read", self.locate(name)):
            data: bytes = self._fs.cat_file(f"{self._root}/{name}", start=0, end=_READ_BYTES_MAX + 1)
        return _bounded(data, self.locate(name))

    def fetch(self, name: str, target: Path) -> None:
        with _remote_refusals("download", self.locate(name)):
            self._fs.get_file(f"{self._root}/{name}", str(target))

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        if self._scratch is not None:
            with _refusals("make", str(self._scratch)):
                self._scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
        with (
            _refusals("gather an upload in", str(self._scratch or tempfile.gettempdir())),
            tempfile.NamedTemporaryFile(dir=self._scratch, prefix="qd-upload-") as file,
        ):
            yield file  # type: ignore[misc]
            file.flush()
            with _remote_refusals("upload", self.locate(name)):
                self._fs.put_file(file.name, f"{self._root}/{name}")

    def remove(self, name: str) -> None:
        with _remote_refusals("remove", self.locate(name)):
            try:
                self._fs.rm_file(f"{self._root}/{name}")
            except FileNotFoundError:
                return

    def locate(self, name: str) -> str:
        return f"{self._url.rstrip('/')}/{name}"


@contextmanager
def _remote_refusals(verb: str, where: str) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except Exception as error:  # every store has exceptions of its own, without a common root
        raise StorageError(f"cannot {verb} {where}: {type(error).__name__}: {error}") from error


def _options(url: str, environment: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """The bare URL, and what fsspec is told: from the query and from the environment."""
    parts = urlsplit(url)
    if parts.password or (parts.username and parts.scheme in ("s3", "s3a")):
        raise ConfigError(
            f"{parts.scheme}://…: credentials do not belong into a URL, where everybody on this machine sees them; "
            f"use the environment (AWS_ACCESS_KEY_ID, … or {OPTIONS_VARIABLE})"
        )
    options: dict[str, Any] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if any(word in name.lower() for word in _SECRETS):
            raise ConfigError(
                f"{parts.scheme}://…?{name}=…: credentials do not belong into a URL, where everybody on this machine "
                f"sees them; use the environment (AWS_ACCESS_KEY_ID, … or {OPTIONS_VARIABLE})"
            )
        options[name] = value
    if parts.scheme in ("s3", "s3a"):
        if "region" in options:
            options["client_kwargs"] = {"region_name": options.pop("region")}
        options["use_listings_cache"] = False
        options["config_kwargs"] = {"connect_timeout": 5, "read_timeout": 30, "retries": {"max_attempts": 2}}
    if text := environment.get(OPTIONS_VARIABLE):
        try:
            more = json.loads(text)
        except ValueError:
            more = None
        if not isinstance(more, dict):
            raise ConfigError(f"{OPTIONS_VARIABLE} is not a JSON object")
        options |= more
    options["skip_instance_cache"] = True
    return urlunsplit((parts.scheme, parts.netloc, parts.path, "", "")), options
