"""Requests between replicas, on two ends joined in memory: what is answered, refused, late or lost."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

import pytest

from controlplane.base.errors import Code, StatusError
from controlplane.base.limits import FRAME_BYTES_MAX
from controlplane.pb.quarterdeck.internal.v1.raft_pb2 import CallRequest, CallResponse, Frame
from controlplane.transport.peer_calls import PeerCalls


class End:
    """Replica ``r<n>``; ``other`` gets its frames, which are kept in ``sent``. Nothing passes while ``cut``."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.other: End | None = None
        self.cut = False
        self.sent: list[Frame] = []
        self.tasks: set[asyncio.Task[None]] = set()
        self.calls = PeerCalls(
            me=f"r{n}", first_id=100 * n, send=self._send, name=lambda peer_id: f"r{peer_id}", spawn=self._spawn
        )

    def _send(self, peer_id: int, frame: Frame) -> bool:
        if self.cut:
            return False
        self.sent.append(frame)
        if self.other is not None and frame.HasField("call_request"):
            self.other.calls.on_request(self.n, frame.call_request)
        elif self.other is not None:
            self.other.calls.on_response(self.n, frame.call_response)
        return True

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)


def joined() -> tuple[End, End]:
    one, two = End(1), End(2)
    one.other, two.other = two, one
    return one, two


async def test_a_call_is_answered_and_its_errors_travel() -> None:
    one, two = joined()

    async def echo(peer: str, payload: bytes) -> bytes:
        if payload == b"no":
            raise StatusError(Code.FAILED_PRECONDITION, "not now")
        if payload == b"bug":
            raise ZeroDivisionError("of ours")
        return peer.encode() + b":" + payload

    two.calls.serve("echo", echo)
    assert await one.calls.call(2, "echo", b"hi", timeout_ms=2_000) == b"r1:hi"
    for channel, payload, code, text in (
        ("echo", b"no", Code.FAILED_PRECONDITION, "not now"),
        ("echo", b"bug", Code.INTERNAL, "ZeroDivisionError: of ours"),
        ("elsewhere", b"", Code.UNIMPLEMENTED, "r2 serves no channel"),
    ):
        with pytest.raises(StatusError, match=text) as refused:
            await one.calls.call(2, channel, payload, timeout_ms=2_000)
        assert refused.value.code == code


async def test_a_silent_peer_is_a_timeout_and_its_late_answer_nobodys() -> None:
    one = End(1)
    with pytest.raises(StatusError, match="r2 did not answer on echo within 1 ms") as late:
        await one.calls.call(2, "echo", b"", timeout_ms=1)
    assert late.value.code == Code.DEADLINE_EXCEEDED
    one.calls.on_response(2, CallResponse(id=one.sent[0].call_request.id, payload=b"late"))


async def test_only_the_peer_that_was_asked_answers() -> None:
    one = End(1)
    call = asyncio.ensure_future(one.calls.call(2, "echo", b"", timeout_ms=60_000))
    await asyncio.sleep(0)
    call_id = one.sent[0].call_request.id
    one.calls.on_response(3, CallResponse(id=call_id, payload=b"of 3"))
    one.calls.on_response(2, CallResponse(id=call_id, payload=b"of 2"))
    assert await call == b"of 2"


async def test_a_broken_link_ends_the_calls_on_it_and_a_stop_all() -> None:
    one = End(1)
    calls = [asyncio.ensure_future(one.calls.call(peer_id, "echo", b"", timeout_ms=60_000)) for peer_id in (2, 3)]
    await asyncio.sleep(0)
    one.calls.link_broke(2)
    with pytest.raises(StatusError, match="the link to r2 broke"):
        await calls[0]
    assert not calls[1].done()
    one.calls.stop()
    with pytest.raises(StatusError, match="replica is stopping"):
        await calls[1]


async def test_no_link_and_too_much_are_said_before_anything_is_sent() -> None:
    one = End(1)
    with pytest.raises(StatusError, match="to a peer: want at most") as large:
        await one.calls.call(2, "echo", b"x" * FRAME_BYTES_MAX, timeout_ms=1_000)
    assert large.value.code == Code.RESOURCE_EXHAUSTED
    one.cut = True
    with pytest.raises(StatusError, match="no link to r2"):
        await one.calls.call(2, "echo", b"", timeout_ms=1_000)
    assert one.sent == []


async def test_a_peer_that_asks_too_much_at_once_is_told() -> None:
    one = End(1)
    go_on = asyncio.Event()

    async def slow(peer: str, payload: bytes) -> bytes:
        await go_on.wait()
        return b""

    one.calls.serve("slow", slow)
    for n in range(257):
        one.calls.on_request(2, CallRequest(id=n, channel="slow"))
    assert [(frame.call_response.id, frame.call_response.code) for frame in one.sent] == [
        (256, Code.RESOURCE_EXHAUSTED)
    ]
    go_on.set()
    await asyncio.gather(*one.tasks)
    assert len(one.sent) == 257
