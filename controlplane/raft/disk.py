"""The disk as Raft's storage sees it: named files under one data directory, and every effect that can be lost.

Owns the data directory: its lock, its paths, the translation of ``OSError`` into ``StorageError``.
Must not know what is in the files.

A write is not durable before :meth:`DiskFile.sync`; a created, renamed or removed name is not durable before
:meth:`Disk.fsync_dir` of its directory. The simulator's disk (``tests/sim/disk.py``) forgets exactly what these
two calls have not covered, so code written against this protocol is tested against power loss.

Names are relative to the data directory and use ``/``. All calls block; the driver runs the slow ones
(``sync``, ``fsync_dir``) outside its loop.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from pathlib import Path
from typing import Protocol

from controlplane.base.errors import ConfigError, StorageError

__all__ = ["Disk", "DiskFile", "OpenDisk", "RealDisk", "read_all"]

LOCK_NAME = "LOCK"
#: What a disk says of itself, and may stop saying; anything else is a setting that is wrong.
_DISK_REFUSED = frozenset({errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS})


class DiskFile(Protocol):
    """One file open for appending."""

    @property
    def size(self) -> int:
        """Bytes written so far, synced or not."""
        ...

    def append(self, data: bytes) -> None:
        """Write all of ``data`` at the end. Raises StorageError; then an unknown part of it is written."""
        ...

    def truncate(self, size: int) -> None:
        """Cut the file to ``size`` bytes."""
        ...

    def sync(self) -> None:
        """fdatasync: when it returns, the bytes and the size survive power loss.

        Raises StorageError; then none of the unsynced bytes may be trusted, not even after a later success: the
        kernel may have dropped the dirty pages.
        """
        ...

    def close(self) -> None: ...


class Disk(Protocol):
    """One data directory."""

    def locate(self, name: str) -> str:
        """Where a person finds the file: for messages only."""
        ...

    def open_append(self, name: str) -> DiskFile:
        """Open for appending; created when missing (durable after ``fsync_dir``)."""
        ...

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Up to ``length`` bytes from ``offset``; all the rest when None. Short at the end of the file."""
        ...

    def size(self, name: str) -> int: ...

    def exists(self, name: str) -> bool: ...

    def list(self, directory: str) -> list[str]:
        """Names of the files in it, sorted, without the directory; empty when it does not exist."""
        ...

    def make_dir(self, directory: str) -> None:
        """Create a directory and make its name durable; no error when it exists."""
        ...

    def rename(self, old: str, new: str) -> None:
        """Atomic within one directory; durable after ``fsync_dir``."""
        ...

    def remove(self, name: str) -> None: ...

    def fsync_dir(self, directory: str) -> None: ...

    def free_bytes(self) -> int:
        """Bytes an unprivileged process may still write."""
        ...


class OpenDisk(Disk, Protocol):
    """A data directory that is held until it is closed."""

    def close(self) -> None: ...


def read_all(disk: Disk, name: str, *, step_bytes: int = 1 << 20) -> bytes:
    """The whole file, read in steps so that no single read is huge."""
    parts: list[bytes] = []
    offset = 0
    while part := disk.read(name, offset, step_bytes):
        parts.append(part)
        offset += len(part)
    return b"".join(parts)


_ADVICE = {
    errno.ENOSPC: "free some space; the replica comes back by itself",
    errno.EDQUOT: "raise the quota or free some space; the replica comes back by itself",
    errno.EROFS: "remount the file system writable; the replica comes back by itself",
    errno.EIO: "check the device (dmesg, SMART); if it is failing, replace this member",
    errno.EACCES: "make it readable and writable for the user that runs this replica",
    errno.EPERM: "make it readable and writable for the user that runs this replica",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENOENT: "something outside this process removed it",
}


def _storage_error(doing: str, path: str, error: OSError) -> StorageError:
    advice = _ADVICE.get(error.errno or 0, "see the system's log for the cause")
    return StorageError(f"cannot {doing} {path}: {error.strerror or error}; {advice}", errno=error.errno or 0)


class _RealFile:
    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._size = os.fstat(self._fd).st_size
        except OSError as error:
            raise _storage_error("open", path, error) from error

    @property
    def size(self) -> int:
        return self._size

    def append(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                written = os.write(self._fd, view)
                self._size += written
                view = view[written:]
        except OSError as error:
            raise _storage_error("write", self._path, error) from error

    def truncate(self, size: int) -> None:
        try:
            os.ftruncate(self._fd, size)
        except OSError as error:
            raise _storage_error("truncate", self._path, error) from error
        self._size = size

    def sync(self) -> None:
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise _storage_error("sync", self._path, error) from error

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class RealDisk:
    """The machine's file system under ``root``, held by an exclusive lock until :meth:`close`.

    Raises:
        ConfigError: ``root`` is missing (and ``create`` is false), is no directory, cannot be written, or another
            process holds it.
    """

    def __init__(self, root: str | os.PathLike[str], *, create: bool = False) -> None:
        self._root = Path(root).absolute()
        self._lock_fd = -1
        if create:
            try:
                self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                reason = error.strerror or error
                raise ConfigError(f"data directory {self._root} cannot be created: {reason}") from error
        if not self._root.exists():
            raise ConfigError(
                f"data directory {self._root} does not exist; create it, or check the path "
                "(a replica that lost its disk must be replaced as a member, never restarted empty)"
            )
        if not self._root.is_dir():
            raise ConfigError(f"data directory {self._root} is not a directory")
        self._take_lock()

    def _take_lock(self) -> None:
        path = self._root / LOCK_NAME
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno in _DISK_REFUSED:
                raise _storage_error("lock", str(path), error) from error
            raise ConfigError(
                f"data directory {self._root} is not writable: {error.strerror or error}; "
                "give it to the user that runs this replica"
            ) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(fd, 32).decode("ascii", "replace").strip()
            os.close(fd)
            raise ConfigError(
                f"data directory {self._root} is in use by another process"
                f"{f' (pid {holder})' if holder else ''}; two replicas cannot share one directory"
            ) from error
        # The pid is a courtesy to whoever meets the lock; the lock itself dies with the process.
        try:
            os.ftruncate(fd, 0)
            os.write(fd, str(os.getpid()).encode("ascii"))
        except OSError as error:
            os.close(fd)
            raise _storage_error("write", str(path), error) from error
        self._lock_fd = fd

    def close(self) -> None:
        """Release the lock. Files opened from here must be closed by their owners before."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def locate(self, name: str) -> str:
        return str(self._root / name)

    def open_append(self, name: str) -> _RealFile:
        return _RealFile(self.locate(name))

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        path = self.locate(name)
        try:
            with open(path, "rb") as file:
                file.seek(offset)
                return file.read(-1 if length is None else length)
        except OSError as error:
            raise _storage_error("read", path, error) from error

    def size(self, name: str) -> int:
        path = self.locate(name)
        try:
            return os.stat(path).st_size
        except OSError as error:
            raise _storage_error("read", path, error) from error

    def exists(self, name: str) -> bool:
        return os.path.exists(self.locate(name))

    def list(self, directory: str) -> list[str]:
        path = self.locate(directory)
        try:
            with os.scandir(path) as entries:
                return sorted(entry.name for entry in entries if entry.is_file())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _storage_error("list", path, error) from error

    def make_dir(self, directory: str) -> None:
        path = self.locate(directory)
        try:
            os.makedirs(path, mode=0o700, exist_ok=True)
        except OSError as error:
            raise _storage_error("create", path, error) from error
        self.fsync_dir("")

    def rename(self, old: str, new: str) -> None:
        path = self.locate(old)
        try:
            os.rename(path, self.locate(new))
        except OSError as error:
            raise _storage_error("rename", path, error) from error

    def remove(self, name: str) -> None:
        path = self.locate(name)
        try:
            os.unlink(path)
        except OSError as error:
            raise _storage_error("remove", path, error) from error

    def fsync_dir(self, directory: str) -> None:
        path = self.locate(directory)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        except OSError as error:
            raise _storage_error("sync", path, error) from error

    def free_bytes(self) -> int:
        try:
            return shutil.disk_usage(self._root).free
        except OSError as error:
            raise _storage_error("measure", str(self._root), error) from error
