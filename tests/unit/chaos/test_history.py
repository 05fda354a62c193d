"""The file holds what was recorded, and says what is wrong with one that was not written here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from chaos.history import Recorder, load
from chaos.records import Event, Header, Listing, Op, Row
from controlplane.base.clock import ManualClock
from controlplane.base.errors import ConfigError

HEADER = Header("run", "/chaos/run/", "2026-01-01T00:00:00.000+00:00", ["127.0.0.1:1", "127.0.0.1:2"])


def record(path: Path) -> None:
    clock = ManualClock(start_s=5.0)
    with Recorder(path, HEADER, clock) as recorder:
        recorder.listing(Listing("start", 1, 7, recorder.now_ns(), []))
        recorder.op(Op(recorder.next_id(), "w1", "put", "e", "k", 1, 2, "ok", "v", revision=8))
        recorder.op(Op(recorder.next_id(), "r1", "get", "e", "k", 3, 4, "ok", None, revision=8))
        recorder.event(Event(1, "k", "v", 8, 1, 5))
        clock.advance(1.5)
        recorder.mark("leader-kill", 1, "fault", replica="r1")
        recorder.listing(Listing("final", 0, 8, 9, [Row("k", "v", 8, 8, 1)]))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    record(tmp_path / "h.jsonl")
    history = load(tmp_path / "h.jsonl")
    assert replace(history.header, anchor_ns=0, anchor_wall_ms=0) == HEADER
    assert history.header.anchor_ns == 5_000_000_000
    assert [op.id for op in history.ops] == [1, 2]
    assert history.ops[0] == Op(1, "w1", "put", "e", "k", 1, 2, "ok", "v", revision=8)
    assert history.ops[1].value is None
    assert history.events == [Event(1, "k", "v", 8, 1, 5)]
    assert history.listings[1].rows == [Row("k", "v", 8, 8, 1)]
    assert (history.marks[0].at_ns, history.marks[0].detail) == (6_500_000_000, {"replica": "r1"})
    assert not history.torn


def test_a_record_is_in_the_file_before_the_next_one(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "h.jsonl", HEADER, ManualClock())
    recorder.op(Op(1, "w1", "put", "e", "k", 1, 2, "ok", "v", revision=8))
    assert len(load(tmp_path / "h.jsonl").ops) == 1
    recorder.close()


def test_a_history_is_never_written_over(tmp_path: Path) -> None:
    record(tmp_path / "h.jsonl")
    with pytest.raises(FileExistsError):
        Recorder(tmp_path / "h.jsonl", HEADER, ManualClock())


def test_a_last_line_cut_off_is_told_as_torn(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    record(path)
    path.write_text(path.read_text()[:-20])
    history = load(path)
    assert history.torn
    assert len(history.ops) == 2
    assert len(history.listings) == 1


def test_damage_before_the_last_line_is_refused_by_line(tmp_path: Path) -> None:
    path = tmp_path / "h.jsonl"
    record(path)
    lines = path.read_text().splitlines()
    lines[2] = lines[2][:-5]
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ConfigError, match="line 3"):
        load(path)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "empty"),
        ("hello\n", "not a history"),
        ('{"t":"op"}\n', "not a history"),
        ('{"t":"header","format_version":2}\n', "format version 2"),
        ('{"t":"header","format_version":1,"run":"x"}\n', "not a history"),
    ],
)
def test_a_file_that_is_no_history_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "h.jsonl").write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        load(tmp_path / "h.jsonl")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path / "h.jsonl")


@pytest.mark.parametrize(
    "line", ['{"t":"op","kind":"cas","outcome":"ok"}', '{"t":"poem"}', '{"t":"mark","act":"x"}', "7", "null"]
)
def test_a_record_of_another_kind_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "h.jsonl"
    record(path)
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ConfigError, match="line 8"):
        load(path)
