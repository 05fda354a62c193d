"""A data directory moved to a small disk of its own, and back: a file system in a file, mounted in its place.

What the replica syncs there is on the machine's disk, so neither a crash of the machine nor of whoever does this loses
anything. The replica must not run meanwhile. At every moment it is known where the data are, from what is there::

    NAME            the data; or where the disk is mounted; or, between two steps, empty
    NAME.disk       the disk, complete, once it has this name
    NAME.kept       the data as they were before, for nothing once the disk has been used
    NAME.back       the data copied back, complete, once they have this name; nothing ran on the disk since

Needs root, loop devices and ``mke2fs``.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from chaos.fault import FaultError

__all__ = ["SmallDisk", "missing"]

_MIB: Final = 1 << 20
#: What is there to begin with, besides the data: a replica wants some of it free before it opens again.
_SPARE_MIB: Final = 128
_HOG: Final = "chaos-hog"


def missing() -> str | None:
    """Why there can be no small disk here; None: there can."""
    if os.geteuid() != 0:
        return "mounting a small disk needs root"
    if shutil.which("mke2fs", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None:
        return "not installed: mke2fs (package e2fsprogs)"
    if not Path("/dev/loop-control").exists():
        return "this kernel has no loop devices"
    return None


class SmallDisk:
    """The small disk of one data directory. Blocks: seconds for big data. Raises FaultError: the machine refused."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory.absolute()
        self._image = self._beside("disk")
        self._kept = self._beside("kept")
        self._back = self._beside("back")

    @property
    def mounted(self) -> bool:
        """Whether the data are on it now."""
        return os.path.ismount(self._directory)

    def move_in(self) -> None:
        """The data are on the disk when this returns."""
        self.settle()
        used = sum(path.stat().st_size for path in self._directory.rglob("*") if path.is_file())
        making, place = self._beside("disk.new"), self._beside("mount")
        with making.open("wb") as file:
            file.truncate((used // _MIB + 1 + _SPARE_MIB) * _MIB)
        _run("mke2fs", "-q", "-F", "-m", "0", "-t", "ext2", str(making))
        place.mkdir(exist_ok=True)
        _run("mount", "-o", "loop", str(making), str(place))
        try:
            (place / "lost+found").rmdir()
            shutil.copytree(self._directory, place, dirs_exist_ok=True)
            place.chmod(0o700)
        finally:
            _run("umount", str(place))  # writes everything back
            place.rmdir()
        _sync(making)
        making.rename(self._image)
        _sync(self._directory.parent)
        self._directory.rename(self._kept)
        self._mount()

    def fill(self) -> None:
        """To the last byte."""
        with (self._directory / _HOG).open("wb", buffering=0) as hog:
            for block in (_MIB, 4096, 1):
                with contextlib.suppress(OSError):  # full, by blocks of that size
                    while True:
                        hog.write(bytes(block))

    def relieve(self) -> None:
        """There is room again. What was copied back before is old from now on."""
        shutil.rmtree(self._back, ignore_errors=True)
        (self._directory / _HOG).unlink(missing_ok=True)

    def move_out(self) -> None:
        """The data are where they were, and no trace of the disk is left."""
        making = self._beside("back.new")
        for stale in (making, self._back):
            shutil.rmtree(stale, ignore_errors=True)
        shutil.copytree(self._directory, making, ignore=shutil.ignore_patterns(_HOG, "lost+found"))
        for path in (*making.rglob("*"), making):
            _sync(path)
        making.rename(self._back)
        _sync(self._directory.parent)
        _run("umount", str(self._directory))
        self.settle()

    def settle(self) -> None:
        """After a crash between two steps: the data are in their directory, or on the disk and mounted."""
        if self.mounted:
            return
        if not self._directory.exists() or not any(self._directory.iterdir()):
            with contextlib.suppress(FileNotFoundError):
                self._directory.rmdir()
            if self._back.exists():
                self._back.rename(self._directory)
                _sync(self._directory.parent)
            elif self._image.exists():
                self._mount()
                return
        if os.path.ismount(self._beside("mount")):  # whoever moved the data in was killed while copying
            _run("umount", str(self._beside("mount")))
        for rest in (self._kept, self._back, self._beside("back.new"), self._beside("mount")):
            shutil.rmtree(rest, ignore_errors=True)
        for rest in (self._image, self._beside("disk.new")):
            rest.unlink(missing_ok=True)

    def _mount(self) -> None:
        self._directory.mkdir(mode=0o700)
        _run("mount", "-o", "loop", str(self._image), str(self._directory))

    def _beside(self, what: str) -> Path:
        return self._directory.with_name(f"{self._directory.name}.{what}")


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _run(program: str, *arguments: str) -> None:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    done = subprocess.run(
        [shutil.which(program, path=path) or program, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise FaultError(f"{program} {' '.join(arguments)}: {done.stderr.strip() or f'exit {done.returncode}'}")
