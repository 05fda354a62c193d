"""A server of ours on a loopback port, and the bare frames of a client that may break every rule."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc

from controlplane.base.clock import SystemClock
from controlplane.transport.h2 import frames
from controlplane.transport.h2.frames import FRAME_HEAD, HEAD_BYTES, PREFACE, Kind
from controlplane.transport.h2.headers import literal
from controlplane.transport.h2.server import H2Server
from controlplane.transport.server import ServerOptions, listen

ECHO = "/t.T/Echo"


def request_block(path: str = ECHO, *extra: tuple[bytes, bytes]) -> bytes:
    fields = (
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":path", path.encode()),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        *extra,
    )
    return b"\x20" + b"".join(literal(name, value) for name, value in fields)


def message(body: bytes) -> bytes:
    return b"\x00" + len(body).to_bytes(4, "big") + body


def call(stream_id: int, body: bytes, block: bytes | None = None) -> bytes:
    return frames.headers(stream_id, block or request_block(), end_stream=False) + frames.frame(
        Kind.DATA, frames.END_STREAM, stream_id, message(body)
    )


class Services:
    """``Echo`` answers what it got, ``Pieces`` does byte by byte, ``Hang`` waits to be cancelled, ``Flood`` sends for
    ever, ``Each`` echoes each."""

    def __init__(self) -> None:
        self.hanging = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.flooded = 0

    async def echo(self, request: bytes, context: Any) -> bytes:
        return request

    async def pieces(self, request: bytes, context: Any) -> list[bytes]:
        assert context.takes_pieces
        return [b"", *(request[at : at + 1] for at in range(len(request)))]

    async def hang(self, request: bytes, context: Any) -> bytes:
        self.hanging.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()
        raise AssertionError

    async def flood(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        while True:
            self.flooded += 1
            yield b"x" * 10_000

    async def each(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request

    def handler(self) -> grpc.GenericRpcHandler:
        return grpc.method_handlers_generic_handler(
            "t.T",
            {
                "Echo": grpc.unary_unary_rpc_method_handler(self.echo),
                "Pieces": grpc.unary_unary_rpc_method_handler(self.pieces),
                "Hang": grpc.unary_unary_rpc_method_handler(self.hang),
                "Flood": grpc.unary_stream_rpc_method_handler(self.flood),
                "Each": grpc.stream_stream_rpc_method_handler(self.each),
            },
        )


class Client:
    """Sends bytes, reads frames."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, *data: bytes) -> None:
        self.writer.write(b"".join(data))

    def hello(self, values: dict[frames.Setting, int] | None = None) -> None:
        self.send(PREFACE, frames.settings(values or {}), frames.frame(Kind.SETTINGS, frames.ACK, 0))

    async def frame(self) -> tuple[int, int, int, bytes] | None:
        """The next frame as (kind, flags, stream, payload); None: closed."""
        try:
            async with asyncio.timeout(10):
                word, flags, stream_id = FRAME_HEAD.unpack(await self.reader.readexactly(HEAD_BYTES))
                return word & 0xFF, flags, stream_id, await self.reader.readexactly(word >> 8)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def until(self, kind: Kind, stream_id: int | None = None) -> tuple[int, bytes]:
        """(flags, payload) of the next frame of this kind."""
        while True:
            found = await self.frame()
            assert found is not None, f"closed before {kind.name}"
            if found[0] == kind and stream_id in (None, found[2]):
                return found[1], found[3]

    async def goaway(self) -> int:
        """The error code the server ends the connection with; it must then close it."""
        _, payload = await self.until(Kind.GOAWAY)
        while await self.frame() is not None:
            pass
        return int.from_bytes(payload[4:8], "big")

    async def echoed(self, stream_id: int) -> bytes:
        """The one message of a response that succeeded."""
        _, data = await self.until(Kind.DATA, stream_id)
        flags, trailers = await self.until(Kind.HEADERS, stream_id)
        assert flags & frames.END_STREAM
        assert literal(b"grpc-status", b"0") in trailers
        return data[5:]


class Rig:
    """One server and connections to it."""

    def __init__(self, options: ServerOptions) -> None:
        self.services = Services()
        self.server = H2Server(options, SystemClock())
        self.server.add_generic_rpc_handlers((self.services.handler(),))
        self.port = listen(self.server, "127.0.0.1:0")
        self._clients: list[Client] = []

    async def connect(self, *, hello: bool = True) -> Client:
        client = Client(*await asyncio.open_connection("127.0.0.1", self.port))
        self._clients.append(client)
        if hello:
            client.hello()
        return client

    async def close(self) -> None:
        await self.server.stop(None)
        for client in self._clients:
            client.writer.close()
            try:
                await client.writer.wait_closed()
            except ConnectionError:
                pass


@asynccontextmanager
async def running(options: ServerOptions | None = None) -> AsyncIterator[Rig]:
    rig = Rig(options or ServerOptions())
    await rig.server.start()
    try:
        yield rig
    finally:
        await rig.close()
