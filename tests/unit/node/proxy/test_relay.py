"""Real sockets on loopback: bytes arrive, dead endpoints are skipped, half-closes and resets are passed on."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from typing import cast

import pytest

from controlplane.base.clock import SystemClock
from node.proxy.balancer import Balancer
from node.proxy.tcp import TcpFrontend
from node.proxy.udp import UdpFrontend


def free_port(ip: str, kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port nobody has, below the range of outgoing connections: one of those, tried again and again while nobody
    listens, would at last connect to itself."""
    while True:
        port = random.randint(12_000, 30_000)
        with socket.socket(socket.AF_INET, kind) as sock:
            try:
                sock.bind((ip, port))
            except OSError:
                continue
            return port


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    data = await reader.read()  # until the client's half-close
    writer.write(data.upper())
    writer.close()


@pytest.fixture
async def backend() -> AsyncIterator[tuple[str, int]]:
    server = await asyncio.start_server(_echo, "127.0.0.1", 0)
    yield "127.0.0.1", server.sockets[0].getsockname()[1]
    server.close()


async def ask(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


async def frontend(*endpoints: tuple[str, int]) -> tuple[TcpFrontend, int]:
    balancer = Balancer()
    balancer.update(endpoints, 0)
    port = free_port("127.0.0.1")
    made = TcpFrontend("127.0.0.1", port, balancer, SystemClock())
    await made.start()
    return made, port


async def test_large_payloads_pass_both_ways_after_a_half_close(backend: tuple[str, int]) -> None:
    proxy, port = await frontend(backend)
    payload = b"abc" * 700_000
    assert await ask(port, payload) == payload.upper()
    await proxy.stop()


async def test_an_endpoint_that_refuses_is_skipped(backend: tuple[str, int]) -> None:
    proxy, port = await frontend(("127.0.0.1", free_port("127.0.0.1")), backend)
    assert [await ask(port, b"x") for _ in range(4)] == [b"X"] * 4
    await proxy.stop()


async def test_without_endpoints_the_connection_is_reset(backend: tuple[str, int]) -> None:
    proxy, port = await frontend()
    with pytest.raises(ConnectionError):
        assert await ask(port, b"x") == b"answered by nobody"
    await proxy.stop()


async def test_agents_share_an_address_and_one_may_go(backend: tuple[str, int]) -> None:
    first, port = await frontend(backend)
    balancer = Balancer()
    balancer.update((backend,), 0)
    second = TcpFrontend("127.0.0.1", port, balancer, SystemClock())
    await second.start()
    await first.stop()
    assert [await ask(port, b"x") for _ in range(8)] == [b"X"] * 8
    await second.stop()


async def test_a_proxy_that_stops_finishes_what_it_has_taken(backend: tuple[str, int]) -> None:
    proxy, port = await frontend(backend)
    open_reader, open_writer = await asyncio.open_connection("127.0.0.1", port)
    open_writer.write(b"half")
    await open_writer.drain()
    waiting = socket.create_connection(("127.0.0.1", port))  # in the kernel's queue: the loop has not run since
    stopping = asyncio.ensure_future(proxy.stop(drain_s=5.0))
    open_writer.write_eof()
    assert await open_reader.read() == b"HALF"
    open_writer.close()
    reader, writer = await asyncio.open_connection(sock=waiting)
    writer.write(b"late")
    writer.write_eof()
    assert await reader.read() == b"LATE"
    writer.close()
    await stopping
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", port)


async def test_a_proxy_that_stops_waits_for_idle_connections_no_longer_than_told(backend: tuple[str, int]) -> None:
    proxy, port = await frontend(backend)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"x")
    await proxy.stop(drain_s=0.05)
    assert await reader.read() == b""
    writer.close()


async def test_a_port_held_without_sharing_is_refused() -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        frontend = TcpFrontend("127.0.0.1", held.getsockname()[1], Balancer(), SystemClock())
        with pytest.raises(OSError, match="in use"):
            await frontend.start()


class _UdpEcho(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(data.upper(), addr)


class _UdpClient(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.received: asyncio.Queue[bytes] = asyncio.Queue()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.received.put_nowait(data)


async def test_udp_answers_come_back_to_the_client_that_asked() -> None:
    loop = asyncio.get_running_loop()
    echo, _ = await loop.create_datagram_endpoint(_UdpEcho, local_addr=("127.0.0.1", 0))
    balancer = Balancer()
    balancer.update((echo.get_extra_info("sockname"),), 0)
    port = free_port("127.0.0.1", socket.SOCK_DGRAM)
    proxy = UdpFrontend("127.0.0.1", port, balancer, SystemClock())
    await proxy.start()
    clients = [await loop.create_datagram_endpoint(_UdpClient, remote_addr=("127.0.0.1", port)) for _ in range(3)]
    for number, (transport, _) in enumerate(clients):
        transport.sendto(b"from %d" % number)
    answers = [await asyncio.wait_for(protocol.received.get(), 5) for _, protocol in clients]
    assert answers == [b"FROM 0", b"FROM 1", b"FROM 2"]
    for transport, _ in clients:
        transport.close()
    await proxy.stop()
    echo.close()
