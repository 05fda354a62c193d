"""Container log files: rotation, the last lines, following. Owns the files' names after rotation; knows no pods.

A process writes its log file itself (opened for append), so that it needs no agent to go on printing. Hence rotation
is copy-and-truncate: what is printed between the last copied byte and the truncation is lost, a window of
microseconds; and lines carry no time of ours.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from controlplane.base.clock import Clock

__all__ = ["follow", "generations", "rotate", "tail"]

_CHUNK_BYTES = 64 * 1024
_FOLLOW_POLL_S = 0.1


def generations(path: Path) -> list[Path]:
    """The files of one run, oldest first, the current one last; only those that exist."""
    rotated = []
    number = 1
    while (older := path.with_name(f"{path.name}.{number}")).exists():
        rotated.append(older)
        number += 1
    current = [path] if path.exists() else []
    return rotated[::-1] + current


def rotate(path: Path, *, bytes_max: int, files_max: int) -> bool:
    """Move the content of a log longer than ``bytes_max`` aside, keep ``files_max`` files in all; True if it did.

    Copies the file: call it off the loop.
    """
    try:
        if path.stat().st_size <= bytes_max:
            return False
    except FileNotFoundError:
        return False
    oldest = path.with_name(f"{path.name}.{files_max - 1}")
    oldest.unlink(missing_ok=True)
    for number in range(files_max - 2, 0, -1):
        source = path.with_name(f"{path.name}.{number}")
        if source.exists():
            source.rename(path.with_name(f"{path.name}.{number + 1}"))
    if files_max > 1:
        with path.open("rb") as source_file, path.with_name(f"{path.name}.1").open("wb") as target:
            shutil.copyfileobj(source_file, target)
            os.truncate(path, 0)
    else:
        os.truncate(path, 0)
    return True


def tail(files: list[Path], lines: int) -> list[tuple[Path, int]]:
    """Where to begin reading, per file, so that the last ``lines`` lines come out: ``[(file, offset), ...]``."""
    plan: list[tuple[Path, int]] = []
    missing = lines
    for path in reversed(files):
        offset, found = _tail_offset(path, missing)
        plan.append((path, offset))
        missing -= found
        if missing <= 0:
            break
    return plan[::-1]


def _tail_offset(path: Path, lines: int) -> tuple[int, int]:
    """The offset of the ``lines``-th line from the end, and how many lines follow it."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        if lines <= 0 or size == 0:
            return size, 0
        position, found = size, 0
        # The newline that ends the file ends its last line and begins none.
        file.seek(size - 1)
        end = size - 1 if file.read(1) == b"\n" else size
        while position > 0:
            start = max(0, position - _CHUNK_BYTES)
            file.seek(start)
            chunk = file.read(min(position, end) - start)
            at = len(chunk)
            while (at := chunk.rfind(b"\n", 0, at)) >= 0:
                found += 1
                if found == lines:
                    return start + at + 1, lines
            position = start
        return 0, found + 1


async def follow(
    path: Path, offset: int, *, ended: Callable[[], bool], clock: Clock, chunk_bytes: int = _CHUNK_BYTES
) -> AsyncIterator[bytes]:
    """What is in the file from ``offset`` and what is appended, until ``ended()`` and all is read.

    A file that shrinks was rotated: reading goes on at its beginning.
    """
    while True:
        # Asked first: what was printed before the end is still read below.
        last_round = ended()
        try:
            with path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < offset:
                    offset = 0
                file.seek(offset)
                while chunk := file.read(chunk_bytes):
                    offset += len(chunk)
                    yield chunk
        except FileNotFoundError:
            offset = 0
        if last_round:
            return
        await clock.sleep(_FOLLOW_POLL_S)
