"""What RFC 9113 and an open network demand of a connection, frame by frame."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
import uvloop

from controlplane.transport.h2 import frames
from controlplane.transport.h2.frames import ErrorCode, Kind, Setting, frame
from controlplane.transport.h2.headers import literal
from controlplane.transport.server import ServerOptions
from tests.unit.transport.h2.support import ECHO, call, message, request_block, running

HEADERS = Kind.HEADERS
Unary = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]
U32_MAX = b"\x7f\xff\xff\xff"


async def test_a_call_is_answered_and_a_steady_clients_block_is_remembered() -> None:
    async with running() as rig:
        client = await rig.connect()
        for stream_id in (1, 3, 5, 7):
            client.send(call(stream_id, b"hello"))
            assert await client.echoed(stream_id) == b"hello"
        assert len(rig.server.requests) == 1


def test_it_works_on_uvloop() -> None:
    async def one_call() -> bytes:
        async with running() as rig:
            client = await rig.connect()
            client.send(call(1, b"hello"))
            return await client.echoed(1)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(one_call()) == b"hello"


async def test_a_request_may_arrive_byte_by_byte() -> None:
    async with running() as rig:
        client = await rig.connect(hello=False)
        for byte in frames.PREFACE + frames.settings({}) + call(1, b"slow"):
            client.send(bytes((byte,)))
            await asyncio.sleep(0)
        assert await client.echoed(1) == b"slow"


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        pytest.param(frame(Kind.DATA, 0, 1, b"x"), ErrorCode.PROTOCOL_ERROR, id="data on an idle stream"),
        pytest.param(frame(Kind.DATA, 0, 0, b"x"), ErrorCode.PROTOCOL_ERROR, id="data on stream 0"),
        pytest.param(frame(HEADERS, 4, 2, request_block()), ErrorCode.PROTOCOL_ERROR, id="headers on an even stream"),
        pytest.param(frame(HEADERS, 4, 1, b"\xff\xff\xff\xff\xff"), ErrorCode.COMPRESSION_ERROR, id="no header block"),
        pytest.param(frame(HEADERS, 4, 1, b"\x80"), ErrorCode.COMPRESSION_ERROR, id="index 0"),
        pytest.param(frame(HEADERS, 4, 1, b"\x3f\xe1\x1f"), ErrorCode.COMPRESSION_ERROR, id="table larger than ours"),
        pytest.param(frame(HEADERS, 0, 1, b"") + frame(Kind.PING, 0, 0, b"8" * 8), 1, id="interrupted block"),
        pytest.param(frame(Kind.CONTINUATION, 4, 1, b""), ErrorCode.PROTOCOL_ERROR, id="continuation of nothing"),
        pytest.param(frame(HEADERS, 4 | 8, 1, b"\x09x"), ErrorCode.PROTOCOL_ERROR, id="more padding than payload"),
        pytest.param(frame(Kind.PUSH_PROMISE, 4, 1, b"\0" * 8), ErrorCode.PROTOCOL_ERROR, id="push promise"),
        pytest.param(frame(Kind.SETTINGS, 0, 0, b"x"), ErrorCode.FRAME_SIZE_ERROR, id="settings of odd length"),
        pytest.param(frame(Kind.SETTINGS, 1, 0, b"\0" * 6), ErrorCode.FRAME_SIZE_ERROR, id="settings ack with payload"),
        pytest.param(frame(Kind.SETTINGS, 0, 1, b""), ErrorCode.PROTOCOL_ERROR, id="settings on a stream"),
        pytest.param(frames.settings({Setting.ENABLE_PUSH: 2}), ErrorCode.PROTOCOL_ERROR, id="bad enable push"),
        pytest.param(frames.settings({Setting.MAX_FRAME_SIZE: 1}), ErrorCode.PROTOCOL_ERROR, id="bad frame size"),
        pytest.param(frames.settings({Setting.INITIAL_WINDOW_SIZE: 2**31}), 3, id="bad window"),
        pytest.param(frame(Kind.PING, 0, 0, b"7" * 7), ErrorCode.FRAME_SIZE_ERROR, id="short ping"),
        pytest.param(frame(Kind.PING, 0, 1, b"8" * 8), ErrorCode.PROTOCOL_ERROR, id="ping on a stream"),
        pytest.param(frame(Kind.RST_STREAM, 0, 1, b"\0" * 4), ErrorCode.PROTOCOL_ERROR, id="reset of an idle stream"),
        pytest.param(frames.window_update(0, 0), ErrorCode.PROTOCOL_ERROR, id="window update of 0"),
        pytest.param(frame(Kind.WINDOW_UPDATE, 0, 0, U32_MAX), ErrorCode.FLOW_CONTROL_ERROR, id="window overflow"),
        pytest.param(frames.FRAME_HEAD.pack(20_000 << 8, 0, 1), ErrorCode.FRAME_SIZE_ERROR, id="frame too large"),
        pytest.param(frame(Kind.SETTINGS, 0, 0) * 1_100, ErrorCode.ENHANCE_YOUR_CALM, id="settings flood"),
        pytest.param(frame(0xFE, 0, 0) * 1_100, ErrorCode.ENHANCE_YOUR_CALM, id="flood of an unknown kind"),
        pytest.param(frames.ping(b"8" * 8, ack=False) * 8, ErrorCode.ENHANCE_YOUR_CALM, id="ping flood"),
        pytest.param(
            frame(HEADERS, 0, 1, b"") + frame(Kind.CONTINUATION, 0, 1, b"") * 20,
            ErrorCode.ENHANCE_YOUR_CALM,
            id="continuation flood",
        ),
        pytest.param(
            b"".join(
                frames.headers(n, request_block("/t.T/Hang"), end_stream=False) + frames.reset(n, ErrorCode.CANCEL)
                for n in range(1, 5_001, 2)
            ),
            ErrorCode.ENHANCE_YOUR_CALM,
            id="rapid reset",
        ),
        pytest.param(
            frames.headers(1, request_block(), end_stream=False) + frame(Kind.DATA, 0, 1) * 1_100,
            ErrorCode.ENHANCE_YOUR_CALM,
            id="empty data flood",
        ),
    ],
)
async def test_what_breaks_the_protocol_ends_the_connection_with_its_code(sent: bytes, code: int) -> None:
    async with running() as rig:
        client = await rig.connect()
        client.send(sent)
        assert await client.goaway() == code


async def test_something_that_is_no_http2_is_sent_away() -> None:
    async with running() as rig:
        client = await rig.connect(hello=False)
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await client.goaway() == ErrorCode.PROTOCOL_ERROR


async def test_the_first_frame_must_be_settings() -> None:
    async with running() as rig:
        client = await rig.connect(hello=False)
        client.send(frames.PREFACE, call(1, b"x"))
        assert await client.goaway() == ErrorCode.PROTOCOL_ERROR


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(request_block(ECHO, (b"Upper", b"x")), id="upper case"),
        pytest.param(request_block(ECHO, (b"connection", b"close")), id="connection header"),
        pytest.param(request_block(ECHO, (b":path", b"/again")), id="pseudo-header after a field"),
        pytest.param(request_block(ECHO, (b"grpc-timeout", b"soon")), id="bad timeout"),
        pytest.param(request_block(ECHO, (b"x-bin", b"!!")), id="binary metadata that is not base64"),
        pytest.param(b"\x20" + literal(b":method", b"POST"), id="no path"),
    ],
)
async def test_a_malformed_request_resets_its_stream_and_no_other(block: bytes) -> None:
    async with running() as rig:
        client = await rig.connect()
        client.send(call(1, b"bad", block), call(3, b"good"))
        _, payload = await client.until(Kind.RST_STREAM, 1)
        assert int.from_bytes(payload, "big") == ErrorCode.PROTOCOL_ERROR
        assert await client.echoed(3) == b"good"


async def test_a_window_of_zero_stalls_a_response_until_it_opens() -> None:
    async with running() as rig:
        client = await rig.connect(hello=False)
        client.hello({Setting.INITIAL_WINDOW_SIZE: 0})
        client.send(call(1, b"0123456789"))
        await client.until(HEADERS, 1)
        client.send(frames.window_update(1, 7))
        assert (await client.until(Kind.DATA, 1))[1] == message(b"0123456789")[:7]
        client.send(frames.settings({Setting.INITIAL_WINDOW_SIZE: 100}))
        assert (await client.until(Kind.DATA, 1))[1] == b"23456789"
        assert (await client.until(HEADERS, 1))[0] & frames.END_STREAM


async def test_a_response_in_pieces_is_one_message_and_keeps_to_the_windows() -> None:
    async with running() as rig:
        client = await rig.connect(hello=False)
        client.hello({Setting.INITIAL_WINDOW_SIZE: 9})
        client.send(call(1, b"0123456789", request_block("/t.T/Pieces")))
        received = b""
        while len(received) < 9:
            received += (await client.until(Kind.DATA, 1))[1]
        assert received == message(b"0123456789")[:9]
        client.send(frames.window_update(1, 100))
        while len(received) < 15:
            received += (await client.until(Kind.DATA, 1))[1]
        assert received == message(b"0123456789")
        assert (await client.until(HEADERS, 1))[0] & frames.END_STREAM
        client.send(call(3, b"", request_block("/t.T/Pieces")))
        assert (await client.until(Kind.DATA, 3))[1] == message(b"")


async def test_a_peer_that_does_not_read_stops_the_handler_not_the_memory() -> None:
    async with running() as rig:
        client = await rig.connect()
        client.send(call(1, b"", request_block("/t.T/Flood")))
        client.send(call(3, b"still served"))
        (connection,) = rig.server.connections
        while connection.queued < 64 * 1024:  # noqa: ASYNC110 - the client's window of 65,535 bytes is used up
            await asyncio.sleep(0)
        before = rig.services.flooded
        for _ in range(100):
            await asyncio.sleep(0)
        assert rig.services.flooded <= before + 1
        assert connection.queued < 128 * 1024


async def test_a_reset_cancels_the_handler() -> None:
    async with running() as rig:
        client = await rig.connect()
        client.send(call(1, b"", request_block("/t.T/Hang")))
        await rig.services.hanging.wait()
        client.send(frames.reset(1, ErrorCode.CANCEL))
        await rig.services.cancelled.wait()
        (connection,) = rig.server.connections
        assert not connection.streams


async def test_a_lost_connection_cancels_its_handlers_and_is_forgotten() -> None:
    async with running() as rig:
        client = await rig.connect()
        client.send(call(1, b"", request_block("/t.T/Hang")))
        await rig.services.hanging.wait()
        client.writer.transport.abort()
        await rig.services.cancelled.wait()
        assert not rig.server.connections


async def test_a_deadline_ends_the_call_with_its_status() -> None:
    async with running() as rig:
        client = await rig.connect()
        client.send(call(1, b"", request_block("/t.T/Hang", (b"grpc-timeout", b"20m"))))
        _, trailers = await client.until(HEADERS, 1)
        assert literal(b"grpc-status", b"4") in trailers
        await rig.services.cancelled.wait()


async def test_compressed_messages_are_refused_by_name() -> None:
    async with running() as rig:
        client = await rig.connect()
        client.send(call(1, b"x", request_block(ECHO, (b"grpc-encoding", b"gzip"))))
        _, trailers = await client.until(HEADERS, 1)
        assert literal(b"grpc-status", b"12") in trailers
        assert literal(b"grpc-accept-encoding", b"identity") in trailers


async def test_more_streams_than_allowed_are_refused_not_failed() -> None:
    async with running(ServerOptions(concurrent_streams_max=1)) as rig:
        client = await rig.connect()
        client.send(call(1, b"", request_block("/t.T/Hang")), call(3, b""))
        _, payload = await client.until(Kind.RST_STREAM, 3)
        assert int.from_bytes(payload, "big") == ErrorCode.REFUSED_STREAM


async def test_more_connections_than_allowed_are_closed() -> None:
    async with running(ServerOptions(connections_max=1)) as rig:
        first = await rig.connect()
        first.send(call(1, b"x"))
        assert await first.echoed(1) == b"x"
        second = await rig.connect()
        while await second.frame() is not None:
            pass
        first.send(call(3, b"y"))
        assert await first.echoed(3) == b"y"


async def test_stopping_with_grace_lets_calls_finish_and_tells_clients_to_leave() -> None:
    async with running() as rig:
        client = await rig.connect()
        client.send(frames.headers(1, request_block("/t.T/Each"), end_stream=False))
        client.send(frame(Kind.DATA, 0, 1, message(b"one")))
        assert (await client.until(Kind.DATA, 1))[1] == message(b"one")
        stopping = asyncio.ensure_future(rig.server.stop(20))
        assert (await client.until(Kind.GOAWAY))[1][:4] == U32_MAX
        _, ping = await client.until(Kind.PING)
        client.send(frames.ping(ping, ack=True), frame(Kind.DATA, frames.END_STREAM, 1, message(b"two")))
        assert (await client.until(Kind.DATA, 1))[1] == message(b"two")
        assert await client.goaway() == ErrorCode.NO_ERROR
        await stopping


async def test_stopping_without_grace_fails_what_runs_as_unavailable() -> None:
    async with running() as rig:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{rig.port}") as channel:
            hang: Unary = channel.unary_unary("/t.T/Hang")
            waiting = asyncio.ensure_future(hang(b""))
            await rig.services.hanging.wait()
            await rig.server.stop(None)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await waiting
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert rig.services.cancelled.is_set()


async def test_large_messages_pass_both_ways_beside_each_other() -> None:
    async with running() as rig, grpc.aio.insecure_channel(f"127.0.0.1:{rig.port}") as channel:
        echo: Unary = channel.unary_unary(ECHO)
        bodies = [bytes([n]) * 1_500_000 for n in range(8)]
        assert await asyncio.gather(*(echo(body) for body in bodies)) == bodies


async def test_a_blocking_client_is_served_too() -> None:
    async with running() as rig:

        def blocking() -> list[bytes]:
            with grpc.insecure_channel(f"127.0.0.1:{rig.port}") as channel:
                echo: Any = channel.unary_unary(ECHO)
                each: Any = channel.stream_stream("/t.T/Each")
                return [echo(b"sync", timeout=10), *each(iter([b"1", b"2"]), timeout=10)]

        assert await asyncio.to_thread(blocking) == [b"sync", b"1", b"2"]
