"""Log files: rotation keeps the writer writing; tails and follows cross it."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.base.clock import ManualClock
from node.logs import follow, generations, rotate, tail


def lines(plan: list[tuple[Path, int]]) -> bytes:
    return b"".join(path.read_bytes()[offset:] for path, offset in plan)


def test_rotation_keeps_the_file_the_process_has_open(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    with path.open("ab", buffering=0) as writer:
        for number in range(4):
            writer.write(b"x" * 100 + b"%d\n" % number)
            assert rotate(path, bytes_max=50, files_max=3)
        writer.write(b"now\n")
    assert path.read_bytes() == b"now\n"
    assert [p.name for p in generations(path)] == ["0.log.2", "0.log.1", "0.log"]
    assert generations(path)[0].read_bytes().endswith(b"2\n")


def test_a_short_log_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    path.write_bytes(b"x" * 50)
    assert not rotate(path, bytes_max=50, files_max=3)
    assert not rotate(tmp_path / "none", bytes_max=50, files_max=3)


@pytest.mark.parametrize(
    ("count", "wanted"), [(0, b""), (1, b"d\n"), (2, b"c\nd\n"), (3, b"b\nc\nd\n"), (9, b"a\nb\nc\nd\n")]
)
def test_tail_counts_lines_across_rotated_files(tmp_path: Path, count: int, wanted: bytes) -> None:
    path = tmp_path / "0.log"
    (tmp_path / "0.log.1").write_bytes(b"a\nb\n")
    path.write_bytes(b"c\nd\n")
    assert lines(tail(generations(path), count)) == wanted


def test_tail_counts_a_line_without_an_end_and_reads_in_pieces(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    path.write_bytes(b"first\n" + b"y" * 200_000 + b"\nlast")
    assert lines(tail([path], 1)) == b"last"
    assert lines(tail([path], 2)) == b"y" * 200_000 + b"\nlast"


async def test_follow_reads_what_comes_and_survives_a_rotation(tmp_path: Path) -> None:
    path = tmp_path / "0.log"
    path.write_bytes(b"old old old\n")
    steps = [b"", b"new\n"]
    over = False

    class WriterClock(ManualClock):
        async def sleep(self, seconds: float) -> None:
            nonlocal over
            path.write_bytes(steps.pop(0))
            over = not steps

    read = [chunk async for chunk in follow(path, 4, ended=lambda: over, clock=WriterClock())]
    assert b"".join(read) == b"old old\nnew\n"
