"""A channel reaches whoever takes a while to answer: an attempt is not cut short only to begin anew, for ever."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc

from controlplane.client.endpoints import CLIENT_CHANNEL_OPTIONS
from controlplane.transport.channel import new_channel

#: Longer than the back-off between two attempts; a busy machine's handshake, or a long link's.
_DELAY_S = 0.7


async def _echo(request: bytes, context: Any) -> bytes:
    return request


async def test_a_server_that_is_slow_to_shake_hands_is_reached_all_the_same() -> None:
    server = grpc.aio.server()
    handler: Any = grpc.unary_unary_rpc_method_handler(_echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", {"Echo": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    connections = 0

    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """The server's first words come late; then everything passes."""
        nonlocal connections
        connections += 1
        there, back = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(_pump(there, writer, _DELAY_S), _pump(reader, back, 0.0))

    proxy = await asyncio.start_server(late, "127.0.0.1", 0)
    try:
        address = f"127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        async with new_channel(address, CLIENT_CHANNEL_OPTIONS) as channel:
            call: Any = channel.unary_unary("/test.Test/Echo")
            assert await call(b"x", timeout=20) == b"x"
        assert connections == 1
    finally:
        proxy.close()
        await server.stop(0)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            await asyncio.sleep(delay_s)
            delay_s = 0.0
            writer.write(data)
    writer.close()
