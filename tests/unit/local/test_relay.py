"""The relay: what faults make of a link, as values; and one in this process, between an echo server and its clients."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from controlplane.local.relay import Relay, RelayFiles, Shape, shape_of
from tests.integration.etcd_rig import free_port

AB = ("a", "b")


def test_a_link_without_faults_is_as_it_is() -> None:
    other = {"f": {"kind": "cut", "links": [["b", "a"]]}}
    assert shape_of(AB, other) == Shape()


def test_delays_add_up_the_narrowest_rate_holds_and_one_cut_is_enough() -> None:
    links = {"links": [["a", "b"]]}
    faults: dict[str, dict[str, Any]] = {
        "1": {"kind": "latency", "delay_ms": 10, "jitter_ms": 2, **links},
        "2": {"kind": "latency", "delay_ms": 5, **links},
        "3": {"kind": "bandwidth", "rate_bytes_s": 900, **links},
        "4": {"kind": "bandwidth", "rate_bytes_s": 100, **links},
        "5": {"kind": "slow-close", "delay_ms": 70, **links},
        "6": {"kind": "cut", **links},
    }
    assert shape_of(AB, faults) == Shape(True, 15, 2, 100, 70, ("1", "2", "3", "4", "5", "6"))


def test_figures_that_a_kind_does_not_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="want one of"):
        RelayFiles(tmp_path).add("f", "cut", [AB], percent=5)


class Rig:
    """A relay between ``a`` and ``b``, who echoes."""

    def __init__(self, folder: Path) -> None:
        self.files = RelayFiles(folder)
        self.port, self._to = free_port(), free_port()
        self.files.write_links({AB: (f"127.0.0.1:{self.port}", f"127.0.0.1:{self._to}")})
        self.relay = Relay(self.files, seed=1)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Rig]:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            handlers.add(asyncio.current_task())
            try:
                with contextlib.suppress(OSError):
                    while data := await reader.read(4096):
                        writer.write(data)
                        await writer.drain()
                    writer.write_eof()
            finally:
                writer.close()

        handlers: set[asyncio.Task[None] | None] = set()
        server = await asyncio.start_server(echo, "127.0.0.1", self._to)
        await self.relay.look()
        running = asyncio.create_task(self.relay.run())
        try:
            yield self
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            server.close()
            await asyncio.gather(*(handler for handler in handlers if handler is not None), return_exceptions=True)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader, writer
        finally:
            writer.transport.abort()
            await asyncio.sleep(0)

    async def strike(self, kind: str, *links: tuple[str, str], **figures: float) -> None:
        self.files.add("f", kind, links, **figures)
        await self.relay.look()


async def echoed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes) -> float:
    """Seconds until it came back."""
    began = time.monotonic()
    writer.write(data)
    async with asyncio.timeout(10):
        assert await reader.readexactly(len(data)) == data
    return time.monotonic() - began


async def test_it_passes_everything_on_and_both_ends_close_in_good_order(tmp_path: Path) -> None:
    async with Rig(tmp_path).running() as rig, rig.connected() as (reader, writer):
        await echoed(reader, writer, b"x" * 300_000)
        writer.write_eof()
        assert await reader.read() == b""


async def test_what_a_cut_link_was_given_arrives_when_it_is_healed(tmp_path: Path) -> None:
    async with Rig(tmp_path).running() as rig, rig.connected() as (reader, writer):
        await echoed(reader, writer, b"before")
        await rig.strike("cut", AB)
        writer.write(b"held")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await reader.read(1)
        await asyncio.sleep(0.1)
        assert rig.files.stats()["f"]["held_bytes"] == 4
        rig.files.remove("f")
        await rig.relay.look()
        assert await reader.readexactly(4) == b"held"


async def test_a_cut_of_the_way_back_lets_the_way_there_through(tmp_path: Path) -> None:
    async with Rig(tmp_path).running() as rig, rig.connected() as (reader, writer):
        await echoed(reader, writer, b"before")
        await rig.strike("cut", ("b", "a"))
        writer.write(b"heard")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await reader.read(1)
        assert rig.relay._stats["f"] == {"bytes": 5, "held_bytes": 5, "delayed_ms_max": 0}


async def test_a_new_connection_over_a_cut_link_hangs_and_then_goes_on(tmp_path: Path) -> None:
    async with Rig(tmp_path).running() as rig:
        await rig.strike("cut", AB)
        async with rig.connected() as (reader, writer):
            writer.write(b"hello")
            await asyncio.sleep(0.05)
            rig.files.remove("f")
            await rig.relay.look()
            assert await reader.readexactly(5) == b"hello"


async def test_delay_and_narrowness_are_felt(tmp_path: Path) -> None:
    async with Rig(tmp_path).running() as rig, rig.connected() as (reader, writer):
        await echoed(reader, writer, b"before")
        await rig.strike("latency", AB, ("b", "a"), delay_ms=60)
        assert await echoed(reader, writer, b"x") >= 0.12
        await rig.strike("bandwidth", AB, rate_bytes_s=20_000)
        assert await echoed(reader, writer, b"x" * 4_000) >= 0.19


async def test_a_reset_tears_down_what_is_there_and_not_what_comes(tmp_path: Path) -> None:
    async with Rig(tmp_path).running() as rig:
        async with rig.connected() as (reader, writer):
            await echoed(reader, writer, b"before")
            await rig.strike("reset", AB)
            with pytest.raises(ConnectionResetError):
                await reader.readexactly(1)
        assert rig.relay._stats["f"]["connections"] == 2, "this end and the one behind the relay"
        async with rig.connected() as (reader, writer):
            await echoed(reader, writer, b"after")


async def test_an_end_is_heard_late(tmp_path: Path) -> None:
    async with Rig(tmp_path).running() as rig, rig.connected() as (reader, writer):
        await echoed(reader, writer, b"before")
        await rig.strike("slow-close", AB, delay_ms=150)
        began = time.monotonic()
        writer.write_eof()
        assert await reader.read() == b""
        assert time.monotonic() - began >= 0.15
        assert rig.relay._stats["f"]["connections"] == 1


async def test_where_nobody_lives_the_caller_is_reset(tmp_path: Path) -> None:
    files = RelayFiles(tmp_path)
    port = free_port()
    files.write_links({AB: (f"127.0.0.1:{port}", f"127.0.0.1:{free_port()}")})
    relay = Relay(files)
    await relay.look()
    running = asyncio.create_task(relay.run())
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with pytest.raises(ConnectionResetError):
        await reader.readexactly(1)
    writer.close()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
