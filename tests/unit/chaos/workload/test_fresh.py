"""The load records what really happened, at the pace it was told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from chaos.checkers import check_all
from chaos.findings import Verdict
from chaos.history import Recorder, load
from chaos.records import Header, History, Listing
from chaos.workload import Board, Pace, Reader, ServiceClient, Writer, fetch, read_prefix
from chaos.workload import fresh as workload
from controlplane.base.clock import ManualClock
from controlplane.base.errors import Code
from controlplane.base.rand import SeededRand
from controlplane.client import etcd_client as etcd
from tests.unit.chaos.fakes import ENDPOINTS, FakeKeyValue, JumpingClock

PREFIX = "/chaos/run/"


class Rig:
    """A writer and a reader on one fake store."""

    def __init__(self, path: Path) -> None:
        self.clock = JumpingClock()
        self.path = path
        self.recorder = Recorder(path, Header("run", PREFIX, "now", ENDPOINTS), self.clock)
        self.kv = FakeKeyValue()
        self.board = Board()
        self.writer = Writer(
            1, PREFIX, self.kv, self.board, self.recorder, Pace(40, self.clock), SeededRand("values")
        )  # fmt: skip
        self.reader = Reader(2, self.kv, self.board, self.recorder, Pace(40, self.clock))

    def history(self) -> History:
        self.recorder.close()
        return load(self.path)


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path / "h.jsonl")


async def test_every_write_has_its_own_key_and_value(rig: Rig) -> None:
    for _ in range(5):
        await rig.writer.write()
    ops = rig.history().ops
    assert len({op.key for op in ops}) == len({op.value for op in ops}) == 5
    assert [op.revision for op in ops] == [6, 7, 8, 9, 10]
    assert {op.endpoint for op in ops} == {ENDPOINTS[0]}


async def test_a_reader_reads_what_another_writer_was_just_told(rig: Rig) -> None:
    await rig.reader.read()  # nothing is written yet: no operation
    await rig.writer.write()
    await rig.reader.read()
    put, get = rig.history().ops
    assert (get.key, get.value, get.mod_revision, get.version) == (put.key, put.value, put.revision, 1)


async def test_a_process_has_a_new_name_after_an_unknown_outcome(rig: Rig) -> None:
    await rig.writer.write()
    rig.kv.next_outcome = etcd.Unknown("UNAVAILABLE: gone", ENDPOINTS[1])
    await rig.writer.write()
    await rig.writer.write()
    ops = rig.history().ops
    assert [(op.process, op.outcome) for op in ops] == [("w1", "ok"), ("w1", "info"), ("w1.1", "ok")]
    assert (ops[1].error, ops[1].endpoint, ops[1].revision) == ("UNAVAILABLE: gone", ENDPOINTS[1], 0)


async def test_a_refused_write_is_recorded_as_failed_and_never_read(rig: Rig) -> None:
    rig.kv.next_outcome = etcd.Failed(Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")
    await rig.writer.write()
    await rig.reader.read()
    (op,) = rig.history().ops
    assert (op.outcome, op.error) == ("fail", "RESOURCE_EXHAUSTED: etcdserver: mvcc: database space exceeded")


async def test_a_read_that_nobody_answers_is_recorded_as_failed(rig: Rig) -> None:
    await rig.writer.write()
    rig.kv.fail_reads = True
    await rig.reader.read()
    assert rig.history().ops[-1].outcome == "fail"


async def test_a_write_cut_off_by_the_end_of_the_run_is_of_unknown_outcome(rig: Rig) -> None:
    stuck = asyncio.Event()

    def hold() -> None:
        stuck.set()
        raise asyncio.CancelledError

    rig.kv.on_put = hold
    with pytest.raises(asyncio.CancelledError):
        await rig.writer.write()
    (op,) = rig.history().ops
    assert (op.outcome, op.error) == ("info", "stopped")
    assert op.value is not None


async def test_a_whole_honest_load_passes_every_rule(rig: Rig) -> None:
    rig.recorder.listing(Listing("start", 1, rig.kv.revision, rig.recorder.now_ns(), []))
    for _ in range(50):
        await rig.writer.write()
        await rig.clock.sleep(0.01)
        await rig.reader.read()
        await rig.clock.sleep(0.01)
    revision, rows = await read_prefix(rig.kv, PREFIX)
    rig.recorder.listing(Listing("final", 0, revision, rig.recorder.now_ns(), rows))
    failed = {finding.rule for finding in check_all(rig.history()) if finding.verdict is Verdict.FAIL}
    assert failed == {"no watch event missing"}  # nobody watched here


async def test_a_stopping_writer_ends(rig: Rig) -> None:
    stopping = asyncio.Event()

    def stop_after_ten() -> None:
        if rig.kv.revision >= 14:
            stopping.set()

    rig.kv.on_put = stop_after_ten
    await rig.writer.run(stopping)
    assert len(rig.history().ops) == 10


async def test_slots_come_at_the_rate(tmp_path: Path) -> None:
    clock = JumpingClock(start_s=100.0)
    pace = Pace(40, clock)
    for _ in range(80):
        await pace.slot()
    assert clock.monotonic() == pytest.approx(102.0)


async def test_being_late_is_made_up_for_but_not_without_end() -> None:
    clock = JumpingClock(start_s=100.0)
    pace = Pace(10, clock)
    clock.advance(0.5)
    for _ in range(6):
        await pace.slot()
    assert clock.monotonic() == pytest.approx(100.6)
    clock.advance(60.0)
    began_s = clock.monotonic()
    slots = 0
    while clock.monotonic() < began_s + 1.0:
        await pace.slot()
        slots += 1
    assert slots == pytest.approx(20, abs=2)


async def test_a_prefix_is_read_in_pages_of_one_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workload, "_PAGE", 3)
    kv = FakeKeyValue()
    for n in range(8):
        await kv.put(f"{PREFIX}{n}".encode(), b"v")
    await kv.put(b"/other", b"v")
    revision, rows = await read_prefix(kv, PREFIX)
    assert revision == kv.revision
    assert [row.key for row in rows] == [f"{PREFIX}{n}" for n in range(8)]


def test_a_reader_prefers_other_writers_keys() -> None:
    board = Board()
    assert board.pick(1, 0) is None
    board.acknowledged(1, "a", 3)
    assert board.pick(1, 0) == "a"
    board.acknowledged(2, "b", 5)
    board.acknowledged(3, "c", 4)
    assert [board.pick(1, turn) for turn in range(3)] == ["b", "c", "b"]
    assert board.revision == 5


# -- the Service ---------------------------------------------------------------------------------------------------

SILENCE = b"(says nothing until the client goes)"


class HttpServer:
    """Answers connections with the given byte strings, one each; None: closes at once."""

    def __init__(self, *answers: bytes | None) -> None:
        self._answers = list(answers)
        self._serving: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> tuple[str, int]:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return "127.0.0.1", self._server.sockets[0].getsockname()[1]

    async def __aexit__(self, *exc_info: object) -> None:
        self._server.close()
        await asyncio.gather(*self._serving)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving.add(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = self._answers.pop(0)
        if answer == SILENCE:
            await reader.read(-1)
        elif answer is not None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
        writer.close()
        try:
            await writer.wait_closed()
        except ConnectionError:
            pass  # the client was quicker


GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


async def test_a_whole_answer_is_success() -> None:
    async with HttpServer(GOOD) as (host, port):
        assert await fetch(host, port, timeout_s=2.0) is None


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (None, ""),
        (b"", "before an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhi", "2 bytes of 5"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", "503"),
    ],
)
async def test_anything_less_is_a_failure(answer: bytes | None, complaint: str) -> None:
    async with HttpServer(answer) as (host, port):
        failure = await fetch(host, port, timeout_s=2.0)
    assert failure is not None
    assert complaint in failure


async def test_silence_is_a_failure_after_the_timeout() -> None:
    async with HttpServer(SILENCE) as (host, port):
        assert await fetch(host, port, timeout_s=0.05) == "no answer within 0.05 s"


async def test_a_refused_connection_is_a_failure() -> None:
    async with HttpServer() as (host, port):
        pass
    assert await fetch(host, port, timeout_s=2.0) == "Connection refused"


@pytest.mark.parametrize(
    ("answers", "outcome", "attempts_failed"),
    [((GOOD,), "ok", 0), ((b"", GOOD), "ok", 1), ((b"", b""), "fail", 2)],
)
async def test_a_request_is_tried_twice_and_both_are_counted(
    tmp_path: Path, answers: tuple[bytes, ...], outcome: str, attempts_failed: int
) -> None:
    path = tmp_path / "h.jsonl"
    with Recorder(path, Header("run", PREFIX, "now", ENDPOINTS), ManualClock()) as recorder:
        async with HttpServer(*answers) as address:
            await ServiceClient(1, address, recorder, Pace(10, ManualClock()), 2.0).request()
    (op,) = load(path).ops
    assert (op.kind, op.outcome, op.attempts_failed) == ("http", outcome, attempts_failed)
