"""A disk in memory that forgets what was not synced, and fails on demand.

Owns the model of what power loss, full disks and dying devices do to files. Knows nothing of their content.

The model: a file has bytes the reader sees and bytes that survive; ``sync`` makes them equal. A directory has names
the reader sees and names that survive; ``fsync_dir`` makes them equal. :meth:`SimDisk.power_loss` keeps the durable
part and a random share of the rest: a file's new bytes may be missing, cut at any byte, or have sectors that were
never written (zeros), and each of a directory's operations survives or not, in no order.
:meth:`SimDisk.process_died` loses nothing, as the page cache outlives a process; what was unsynced stays so.

Everything random comes from the given source: same seed, same losses.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from controlplane.base.errors import StorageError
from controlplane.base.rand import Rand, SeededRand

__all__ = ["PowerLoss", "SimDisk"]

_SECTOR_BYTES = 512


class PowerLoss(BaseException):
    """The machine stops at this operation. No ``Exception``: nothing may handle it and go on."""


@dataclass(slots=True)
class _Inode:
    seen: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    #: Ranges that a failed sync dropped: later syncs report success and do not write them.
    dropped: list[tuple[int, int]] = field(default_factory=list)


_Names = dict[str, _Inode]
#: One change of a directory, applied to the names that survive; without effect if what it needs did not survive.
_Change = Callable[[_Names], None]


@dataclass(slots=True)
class _Directory:
    seen: _Names = field(default_factory=dict)
    durable: _Names = field(default_factory=dict)
    since_sync: list[_Change] = field(default_factory=list)

    def change(self, change: _Change) -> None:
        change(self.seen)
        self.since_sync.append(change)

    def sync(self) -> None:
        self.durable = dict(self.seen)
        self.since_sync.clear()


def _create(name: str, inode: _Inode) -> _Change:
    return lambda names: names.update({name: inode})


def _remove(name: str) -> _Change:
    def change(names: _Names) -> None:
        names.pop(name, None)

    return change


def _rename(old: str, new: str) -> _Change:
    def change(names: _Names) -> None:
        if old in names:
            names[new] = names.pop(old)

    return change


class _SimFile:
    def __init__(self, disk: SimDisk, inode: _Inode, name: str) -> None:
        self._disk = disk
        self._inode = inode
        self._name = name
        self._boot = disk.boots

    @property
    def size(self) -> int:
        return len(self._inode.seen)

    def append(self, data: bytes) -> None:
        self._step(f"append {self._name}", lambda: self._inode.seen.extend(data[: len(data) // 2]))
        room = self._disk.free_bytes()
        if len(data) > room:
            self._disk.refused += 1
            self._inode.seen.extend(data[:room])
            raise StorageError(f"cannot write {self._name}: No space left on device")
        self._inode.seen.extend(data)

    def truncate(self, size: int) -> None:
        self._step(f"truncate {self._name}")
        del self._inode.seen[size:]

    def sync(self) -> None:
        self._step(f"sync {self._name}")
        inode = self._inode
        if self._disk.sync_failures > 0:
            self._disk.sync_failures -= 1
            self._disk.refused += 1
            inode.dropped.append((len(inode.durable), len(inode.seen)))
            if self._disk.hides_failures:
                return
            raise StorageError(f"cannot sync {self._name}: Input/output error")
        if self._disk.loses_syncs:
            return
        if self._disk.sync_later is not None:
            boot = self._disk.boots
            self._disk.sync_later(lambda: self._make_durable() if boot == self._disk.boots else None)
        else:
            self._make_durable()

    def _make_durable(self) -> None:
        inode = self._inode
        durable = bytearray(inode.seen)
        for start, end in inode.dropped:
            durable[start:end] = bytes(len(durable[start:end]))
        inode.durable = bytes(durable)
        self._disk.syncs += 1

    def close(self) -> None:
        pass

    def _step(self, what: str, halfway: object = None) -> None:
        if self._boot != self._disk.boots:
            raise AssertionError(f"{what}: the handle is of a process that is dead")
        try:
            self._disk.step(what)
        except (PowerLoss, StorageError):
            if callable(halfway):
                halfway()
            raise


class SimDisk:
    """One data directory on a simulated disk.

    Attributes:
        stop_at: number of the operation before (for an append: in the middle of) which the machine stops; None: never.
        operations: the operations so far, as text.
        syncs: file syncs that made something durable.
        sync_failures: so many of the next file syncs fail with EIO.
        fails_at: number of the operation that fails with EIO: a write in its middle, any other as a whole; None: none.
        loses_syncs: file syncs report success and do nothing.
        hides_failures: a sync that fails reports success.
        sync_later: file syncs report success at once, and happen when this says so.
        capacity_bytes: size of the disk.
    """

    def __init__(self, rand: Rand | int = 0, *, capacity_bytes: int = 1 << 40) -> None:
        self._rand = SeededRand(rand) if isinstance(rand, int) else rand
        self._directories: dict[str, _Directory] = {"": _Directory()}
        self.capacity_bytes = capacity_bytes
        self.stop_at: int | None = None
        self.operations: list[str] = []
        self.syncs = 0
        self.sync_failures = 0
        self.fails_at: int | None = None
        self.loses_syncs = False
        self.hides_failures = False
        self.sync_later: Callable[[Callable[[], None]], None] | None = None
        self.boots = 0
        #: How often it refused an operation.
        self.refused = 0

    # -- faults -----------------------------------------------------------------------------------------------------

    def step(self, what: str) -> None:
        """Count one operation; stop the machine, or refuse, if its time has come."""
        if self.stop_at is not None and len(self.operations) >= self.stop_at:
            raise PowerLoss(what)
        self.operations.append(what)
        if self.fails_at is not None and len(self.operations) > self.fails_at:
            self.fails_at = None
            if what.startswith("sync "):
                self.sync_failures += 1
                return
            self.refused += 1
            raise StorageError(f"cannot {what}: Input/output error")

    def process_died(self) -> None:
        """kill -9: handles are gone, the page cache stays."""
        self.boots += 1
        self.stop_at = None

    def power_loss(self) -> None:
        """The machine stops: of what was not synced, a random share is gone."""
        self.process_died()
        self.sync_failures, self.fails_at = 0, None
        inodes: dict[int, _Inode] = {}
        for directory in self._directories.values():
            directory.seen = dict(directory.durable)
            for change in directory.since_sync:
                if self._rand.randint(0, 1):
                    change(directory.seen)
            directory.sync()
            inodes.update((id(inode), inode) for inode in directory.seen.values())
        for inode in inodes.values():
            inode.seen = bytearray(self._what_survives(inode))
            inode.durable = bytes(inode.seen)
            inode.dropped.clear()

    def _what_survives(self, inode: _Inode) -> bytes:
        durable, seen = inode.durable, bytes(inode.seen)
        if seen == durable or inode.dropped:
            return durable
        if len(seen) <= len(durable):
            return durable if self._rand.randint(0, 1) else seen
        survivor = bytearray(seen)
        match self._rand.randint(0, 3):
            case 0:
                return durable
            case 1:
                return seen
            case 2:
                return seen[: self._rand.randint(len(durable), len(seen))]
            case _:
                for start in range(len(durable) // _SECTOR_BYTES * _SECTOR_BYTES, len(seen), _SECTOR_BYTES):
                    if self._rand.randint(0, 1):
                        lost_from, lost_to = max(start, len(durable)), min(start + _SECTOR_BYTES, len(seen))
                        survivor[lost_from:lost_to] = bytes(lost_to - lost_from)
                return bytes(survivor)

    def flip_bit(self, name: str, offset: int, bit: int = 0) -> None:
        """Rot: one bit changes, on the disk and for the reader."""
        inode = self._inode(name)
        inode.seen[offset] ^= 1 << bit
        if offset < len(inode.durable):
            durable = bytearray(inode.durable)
            durable[offset] ^= 1 << bit
            inode.durable = bytes(durable)

    def replace(self, name: str, data: bytes) -> None:
        """Set a file's content, durably: for tests that prepare damage."""
        inode = self._inode(name)
        inode.seen = bytearray(data)
        inode.durable = data

    def copy(self) -> SimDisk:
        """An independent disk with the same durable content, none of it in doubt."""
        twin = SimDisk(0, capacity_bytes=self.capacity_bytes)
        for path, directory in self._directories.items():
            names = {name: _Inode(bytearray(i.seen), bytes(i.seen)) for name, i in directory.seen.items()}
            twin._directories[path] = _Directory(names, dict(names))
        return twin

    def close(self) -> None:
        """Nobody else wants it."""

    def durable_copy(self) -> SimDisk:
        """What would be left if the machine stopped now and had written nothing it was not asked to sync."""
        twin = SimDisk(0)
        for path, directory in self._directories.items():
            names = {name: _Inode(bytearray(i.durable), i.durable) for name, i in directory.durable.items()}
            twin._directories[path] = _Directory(names, dict(names))
        return twin

    # -- the Disk protocol ------------------------------------------------------------------------------------------

    def locate(self, name: str) -> str:
        return f"sim:{name}"

    def open_append(self, name: str) -> _SimFile:
        directory, base = self._split(name)
        if base not in directory.seen:
            self.step(f"create {name}")
            directory.change(_create(base, _Inode()))
        return _SimFile(self, directory.seen[base], name)

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        seen = self._inode(name).seen
        return bytes(seen[offset:] if length is None else seen[offset : offset + length])

    def size(self, name: str) -> int:
        return len(self._inode(name).seen)

    def exists(self, name: str) -> bool:
        path, _, base = name.rpartition("/")
        return path in self._directories and base in self._directories[path].seen

    def list(self, directory: str) -> list[str]:
        return sorted(self._directories[directory].seen) if directory in self._directories else []

    def make_dir(self, directory: str) -> None:
        if directory not in self._directories:
            self.step(f"make_dir {directory}")
            self._directories[directory] = _Directory()

    def rename(self, old: str, new: str) -> None:
        self.step(f"rename {old} {new}")
        directory, base = self._split(old)
        target, new_base = self._split(new)
        assert directory is target, "atomic within one directory only"
        self._inode(old)
        directory.change(_rename(base, new_base))

    def remove(self, name: str) -> None:
        self.step(f"remove {name}")
        self._inode(name)
        directory, base = self._split(name)
        directory.change(_remove(base))

    def fsync_dir(self, directory: str) -> None:
        self.step(f"fsync_dir {directory}")
        self._directories[directory].sync()

    @property
    def used_bytes(self) -> int:
        """Bytes of all files."""
        return sum(len(inode.seen) for d in self._directories.values() for inode in d.seen.values())

    def free_bytes(self) -> int:
        return max(0, self.capacity_bytes - self.used_bytes)

    def _split(self, name: str) -> tuple[_Directory, str]:
        path, _, base = name.rpartition("/")
        if path not in self._directories:
            raise StorageError(f"cannot open {name}: no directory {path}")
        return self._directories[path], base

    def _inode(self, name: str) -> _Inode:
        directory, base = self._split(name)
        if base not in directory.seen:
            raise StorageError(f"cannot read {name}: No such file or directory")
        return directory.seen[base]
