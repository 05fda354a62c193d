"""Damage to a data directory: where the log ends, and bits that turn and are put back. And clocks, as files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from controlplane.base.errors import ConfigError
from controlplane.local.clocks import Clocks, library
from controlplane.local.damage import flip, last_frame, restore, rot_target
from controlplane.raft.wal_format import encode_frame

FRAMES = [encode_frame(3, number, [bytes([number]) * 20]) for number in (7, 8, 9)]


def log(folder: Path, *frames: bytes) -> Path:
    path = folder / "wal" / f"{3:016x}.wal"
    path.parent.mkdir()
    path.write_bytes(b"".join(frames))
    return path


def test_the_last_frame_is_found_and_cut_in_whole_or_in_part(tmp_path: Path) -> None:
    path = log(tmp_path, *FRAMES)
    tail = last_frame(tmp_path)
    assert tail is not None
    assert (tail.start, tail.end) == (len(FRAMES[0]) + len(FRAMES[1]), sum(map(len, FRAMES)))
    assert tail.cut(5) == len(FRAMES[2]) - 5
    assert path.read_bytes() == FRAMES[0] + FRAMES[1] + FRAMES[2][:5]


def test_the_only_frame_of_a_segment_is_left_alone(tmp_path: Path) -> None:
    log(tmp_path, FRAMES[0])
    assert last_frame(tmp_path) is None
    with pytest.raises(ConfigError, match="too young to rot"):
        rot_target(tmp_path, "wal")


def test_a_log_that_is_damaged_already_is_not_damaged_more(tmp_path: Path) -> None:
    log(tmp_path, FRAMES[0], FRAMES[1][:-1])
    with pytest.raises(ConfigError, match="damaged already"):
        last_frame(tmp_path)
    with pytest.raises(ConfigError, match="no snapshot yet"):
        rot_target(tmp_path, "snapshot")


def test_a_bit_turns_and_is_put_back(tmp_path: Path) -> None:
    path = log(tmp_path, *FRAMES)
    target, low, high = rot_target(tmp_path, "wal")
    assert (target, low) == (path, 0)
    assert high < len(FRAMES[0]) + len(FRAMES[1]), "the last frame could be taken for a torn one"
    flipped = flip(path, 5, 3)
    assert flipped.before ^ flipped.after == 8
    assert path.read_bytes() != b"".join(FRAMES)
    restore(path, flipped.offset, flipped.before)
    assert path.read_bytes() == b"".join(FRAMES)


def test_what_rots_is_the_newest_snapshot_and_not_what_was_set_aside_or_half_received(tmp_path: Path) -> None:
    folder = tmp_path / "snapshots"
    folder.mkdir()
    for name in ("1-1.snap", "2-1.snap", "2-1.snap.corrupt", "3-1.snap.corrupt", "4-1-9-ab.part", "5-1.tmp"):
        (folder / name).write_bytes(b"0123456789")
    assert rot_target(tmp_path, "snapshot") == (folder / "2-1.snap", 0, 9)


def test_a_process_gets_a_clock_of_its_own_only_if_there_is_a_file_for_it(tmp_path: Path) -> None:
    clocks = Clocks(tmp_path)
    assert clocks.environment("r1") == {}
    clocks.set("r1", offset_s=-5, rate=2)
    assert (tmp_path / "r1.clock").read_text() == "-5.000s x2\n"
    if library() is not None:
        assert clocks.environment("r1")["FAKETIME_DONT_FAKE_MONOTONIC"] == "1"
        clocks.set("r1", offset_s=5, monotonic=True)
        assert "FAKETIME_DONT_FAKE_MONOTONIC" not in clocks.environment("r1")
    clocks.clear("r1")
    assert clocks.environment("r1") == {}
    clocks.set("r1", offset_s=5)
    clocks.right("r1")
    assert (tmp_path / "r1.clock").read_text() == "+0.000s\n"  # who runs under it reads that
    assert clocks.environment("r1") == {}  # who starts does not come under it
    clocks.set("r1", offset_s=5)
    assert bool(clocks.environment("r1")) == (library() is not None)


#: Two threads that hand the interpreter's lock to each other and back, for half a second; prints how often.
_HANDING_OVER = """
import queue, threading, time
there, back = queue.SimpleQueue(), queue.SimpleQueue()
def count_up():
    for n in range(20_000):
        pass
def work():
    while there.get():
        count_up()
        back.put(True)
thread = threading.Thread(target=work)
thread.start()
ends_s, count = time.perf_counter() + 0.5, 0
while time.perf_counter() < ends_s:
    there.put(True)
    count_up()
    back.get()
    count += 1
there.put(False)
thread.join()
print(count)
"""


@pytest.mark.skipif(library() is None and "CI" not in os.environ, reason="libfaketime is not installed")
def test_threads_under_a_wall_clock_of_their_own_do_not_wait_a_second_for_each_other(tmp_path: Path) -> None:
    clocks = Clocks(tmp_path)
    clocks.set("r1", offset_s=3600)

    def handed_over(environment: Mapping[str, str]) -> int:
        done = [
            subprocess.run(
                [sys.executable, "-c", _HANDING_OVER], env={**os.environ, **environment},
                capture_output=True, text=True, timeout=50, check=True,
            )
            for _ in range(3)
        ]  # fmt: skip
        return max(int(one.stdout) for one in done)

    # Measured: as often as without; an eighth, or three times a second, with libfaketime's repair of timed waits.
    assert handed_over(clocks.environment("r1")) > handed_over({}) / 4
