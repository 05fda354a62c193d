"""The proxy follows the API: listeners come and go with Services, endpoints with their slices."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from controlplane.base.clock import SystemClock
from controlplane.base.rand import SeededRand
from controlplane.pb.k8s.core_v1_pb2 import Service
from controlplane.pb.k8s.discovery_v1_pb2 import EndpointSlice
from node.proxy.userspace import UserspaceProxy
from tests.fakes.api import FakeApi
from tests.unit.node.proxy.test_relay import free_port
from tests.unit.node.proxy.test_table import endpoint_slice, service

VIP = "127.0.0.1"


async def _name(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"%s" % writer.get_extra_info("sockname")[0].encode())
    writer.close()


@pytest.fixture
async def backends() -> AsyncIterator[tuple[list[str], int]]:
    port = free_port("127.0.0.1")
    ips = ["127.77.0.1", "127.77.0.2"]
    servers = [await asyncio.start_server(_name, ip, port) for ip in ips]
    yield ips, port
    for server in servers:
        server.close()


async def answers(port: int) -> str:
    """Who answers on the VIP; "" when nobody does."""
    try:
        reader, writer = await asyncio.open_connection(VIP, port)
        data = await reader.read()
        writer.close()
    except ConnectionError:
        return ""
    return data.decode()


async def until(port: int, wanted: set[str]) -> None:
    """Return once exactly these answer, over several connections."""
    async with asyncio.timeout(10):
        while {await answers(port) for _ in range(6)} != wanted:  # noqa: ASYNC110 - sockets have no event
            await asyncio.sleep(0)


class Reports:
    def __init__(self) -> None:
        self.said: list[tuple[str, str, str]] = []

    def __call__(self, service: Service, reason: str, message: str) -> None:
        self.said.append((service.metadata.name, reason, message))


async def test_listeners_and_endpoints_follow_the_api(backends: tuple[list[str], int]) -> None:
    ips, backend_port = backends
    api = FakeApi()
    port = free_port(VIP)
    reports = Reports()
    proxy = UserspaceProxy(api, clock=SystemClock(), rand=SeededRand(1), report=reports)
    await api.create(service(ip=VIP, port=port))
    both = endpoint_slice((ips[0], True), (ips[1], True), port=backend_port)
    both.metadata.name = "web-1"
    await api.create(both)
    await proxy.start()
    await until(port, set(ips))

    suspect = await api.get(EndpointSlice, "web-1", namespace="default")
    suspect.endpoints[0].conditions.ready = False
    await api.update(suspect)
    await until(port, {ips[1]})

    await api.delete(Service, "web", namespace="default")
    await until(port, {""})
    await proxy.stop()
    assert reports.said == []


async def test_an_address_that_cannot_be_bound_is_reported_once_and_stops_nothing_else(
    backends: tuple[list[str], int],
) -> None:
    ips, backend_port = backends
    api = FakeApi()
    port = free_port(VIP)
    reports = Reports()
    proxy = UserspaceProxy(api, clock=SystemClock(), rand=SeededRand(1), report=reports)
    await api.create(service("elsewhere", ip="192.0.2.1", port=port))
    await api.create(service(ip=VIP, port=port))
    one = endpoint_slice((ips[0], True), port=backend_port)
    one.metadata.name = "web-1"
    await api.create(one)
    await proxy.start()
    await until(port, {ips[0]})
    await api.create(service("later", ip="127.0.0.1", port=free_port(VIP)))
    await until(port, {ips[0]})
    await proxy.stop()
    assert [(name, reason) for name, reason, _ in reports.said] == [("elsewhere", "ListenFailed")]
    assert "192.0.2.1" in reports.said[0][2]
