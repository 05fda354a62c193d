"""The links of a cluster on loopback, relayed: TCP connections passed on, one directed link each way, that can be cut,
delayed, narrowed, reset and closed slowly without root. TLS passes untouched.

``python -m controlplane.local.relay FOLDER`` relays until it is told to stop. It is told through files, so that what is
broken outlives whoever broke it, and anybody can heal it::

    FOLDER/links.json        who dials whom, where (written when the cluster starts)
    FOLDER/faults/NAME.json  one fault each: its kind, the links it is on, its figures; gone when it is healed
    FOLDER/stats.json        what the relay answers: faults in force, and what each has done

A connection that ``a`` dialled to ``b`` carries two links: what ``a`` sends is a→b's, what comes back b→a's. What a cut
link was given is held, not lost: a stream without a gap is all that TCP would have made of it either, once the packets
come through again. New connections over a link that is cut either way hang, as they do when a SYN gets lost. Packets
are not seen here, so none can be lost singly: that wants ``hosts``.

Bounded: connections by what processes dial, memory by what a pipe holds (:data:`_HELD_CHUNKS` chunks).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from controlplane.base.addresses import split_address
from controlplane.base.errors import ConfigError

__all__ = ["KINDS", "STATS_S", "Relay", "RelayFiles", "Shape", "shape_of"]

#: Kind of fault -> its figures, all of them numbers.
KINDS: Final[Mapping[str, tuple[str, ...]]] = {
    "cut": (),
    "latency": ("delay_ms", "jitter_ms"),
    "bandwidth": ("rate_bytes_s",),
    "reset": ("every_ms",),
    "slow-close": ("delay_ms",),
}
_VERSION: Final = 1
_POLL_S: Final = 0.02
#: What it has done is told as often while a fault is in force.
STATS_S: Final = 0.05
_CHUNK_BYTES: Final = 64 * 1024
#: What a pipe holds at most, in chunks; then it does not read on.
_HELD_CHUNKS: Final = 64
_HANGS_S: Final = 3.0

Link = tuple[str, str]
#: When a chunk is due, on the monotonic clock in seconds, and the chunk; empty: the end; an error: how it broke.
_Held = tuple[float, bytes | OSError]


class RelayFiles:
    """The folder through which a relay is told, from any process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._faults = folder / "faults"

    def write_links(self, relayed: Mapping[Link, tuple[str, str]]) -> None:
        """What is to be relayed: (who dials, whom) -> (address to listen on, address behind it)."""
        links = [
            {"source": source, "target": target, "listen": listen, "to": to}
            for (source, target), (listen, to) in relayed.items()
        ]
        self._faults.mkdir(parents=True, exist_ok=True)
        _write(self.folder / "links.json", {"version": _VERSION, "links": links})

    def read_links(self) -> dict[Link, tuple[str, str]]:
        """The same, read. Raises ConfigError."""
        found = _read(self.folder / "links.json")
        if found is None or found.get("version") != _VERSION:
            raise ConfigError(f"{self.folder / 'links.json'}: missing, damaged or of another version; qd local up")
        return {(link["source"], link["target"]): (link["listen"], link["to"]) for link in found["links"]}

    def add(self, fault: str, kind: str, links: Iterable[Link], **figures: float) -> None:
        """Break these links from now on, under this name."""
        if kind not in KINDS or set(figures) - set(KINDS[kind]):
            raise ValueError(f"{kind} with {', '.join(figures)}: want one of {dict(KINDS)}")
        text = {"version": _VERSION, "kind": kind, "links": [list(link) for link in links], **figures}
        self._faults.mkdir(parents=True, exist_ok=True)
        _write(self._faults / f"{fault}.json", text)

    def remove(self, fault: str) -> None:
        """Heal it. Safe to repeat."""
        (self._faults / f"{fault}.json").unlink(missing_ok=True)

    def faults(self) -> dict[str, dict[str, Any]]:
        """Every fault that shall be in force, by name."""
        found = {path.stem: _read(path) for path in sorted(self._faults.glob("*.json"))}
        return {name: fault for name, fault in found.items() if fault is not None and fault.get("kind") in KINDS}

    def stats(self) -> dict[str, dict[str, float]]:
        """Fault in force -> what it has done so far: ``bytes`` that passed or were held under it, ``held_bytes``,
        ``delayed_ms_max``, ``connections`` reset, closed late or hanging. Empty: no relay, or no fault."""
        found = _read(self.folder / "stats.json") or {}
        return dict(found.get("faults", {}))

    def stamp(self) -> object:
        """Differs when faults have changed."""
        try:
            return tuple(sorted((entry.name, entry.stat().st_mtime_ns) for entry in os.scandir(self._faults)))
        except FileNotFoundError:  # one vanished meanwhile: look again
            return None

    def write_stats(self, stats: Mapping[str, Any]) -> None:
        """The relay's answer."""
        _write(self.folder / "stats.json", {"version": _VERSION, "faults": stats})


@dataclass(frozen=True, slots=True)
class Shape:
    """What all faults on a link make of it. ``rate_bytes_s`` 0: as fast as it goes."""

    cut: bool = False
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    rate_bytes_s: float = 0.0
    close_ms: float = 0.0
    #: Names of the faults on it.
    by: tuple[str, ...] = ()


def shape_of(link: Link, faults: Mapping[str, Mapping[str, Any]]) -> Shape:
    """Delays add up, the narrowest rate holds, one cut is enough."""
    mine = {name: fault for name, fault in faults.items() if list(link) in fault["links"]}

    def total(kind: str, figure: str) -> float:
        return sum(float(fault.get(figure, 0)) for fault in mine.values() if fault["kind"] == kind)

    rates = [float(fault["rate_bytes_s"]) for fault in mine.values() if fault["kind"] == "bandwidth"]
    return Shape(
        cut=any(fault["kind"] == "cut" for fault in mine.values()),
        delay_ms=total("latency", "delay_ms"),
        jitter_ms=total("latency", "jitter_ms"),
        rate_bytes_s=min(rates, default=0.0),
        close_ms=total("slow-close", "delay_ms"),
        by=tuple(mine),
    )


@dataclass(slots=True)
class _Way:
    """One directed link as it is now."""

    link: Link
    shape: Shape = field(default_factory=Shape)
    open: asyncio.Event = field(default_factory=asyncio.Event)


class Relay:
    """All links of one folder. :meth:`run` until cancelled."""

    def __init__(self, files: RelayFiles, *, seed: int | None = None) -> None:
        self._files = files
        self._random = random.Random(seed)  # noqa: S311 - jitter, no secret
        self._ways: dict[Link, _Way] = {}
        self._faults: dict[str, dict[str, Any]] = {}
        self._stats: dict[str, dict[str, float]] = {}
        self._listening: dict[Link, asyncio.Server] = {}
        self._connections: dict[asyncio.StreamWriter, Link] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._reset_at_s: dict[str, float] = {}
        self._stamps: tuple[object, object] = (None, None)
        self._said_s = 0.0

    async def run(self) -> None:
        """Relay, and look for changes. Raises ConfigError: an address is in use."""
        try:
            while True:
                await self.look()
                await asyncio.sleep(_POLL_S)
        finally:
            for server in self._listening.values():
                server.close()
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def look(self) -> None:
        """Take up what has changed in the folder."""
        links_stamp = (self._files.folder / "links.json").stat().st_mtime_ns
        stamps = (links_stamp, self._files.stamp())
        now_s = time.monotonic()
        changed = stamps != self._stamps
        if changed:
            self._stamps = stamps
            try:
                await self._listen(self._files.read_links())
            except ConfigError as error:
                if not self._listening:
                    raise
                # A link that was added cannot be had: those that are there go on.
                print(f"relay: {error}", file=sys.stderr, flush=True)  # noqa: T201 - this program's own words
            self._faults = self._files.faults()
            self._stats = {name: self._stats.get(name, {}) for name in self._faults}
            self._reset_at_s = {name: at for name, at in self._reset_at_s.items() if name in self._faults}
            for way in self._ways.values():
                self._shape(way)
        for name, fault in self._faults.items():
            if fault["kind"] == "reset" and now_s >= self._reset_at_s.get(name, 0.0):
                every_s = float(fault.get("every_ms", 0)) / 1000
                self._reset_at_s[name] = now_s + every_s if every_s else float("inf")
                self._reset(name, [(link[0], link[1]) for link in fault["links"]])
        if changed or (self._faults and now_s - self._said_s > STATS_S):
            self._said_s = now_s
            self._files.write_stats(self._stats)

    async def _listen(self, links: Mapping[Link, tuple[str, str]]) -> None:
        for link in [link for link in self._listening if link not in links]:
            self._listening.pop(link).close()
        for link, (listen, to) in links.items():
            if link not in self._listening:
                self._listening[link] = await self._serve(link, listen, to)

    async def _serve(self, link: Link, listen: str, to: str) -> asyncio.Server:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._connections[writer] = link
            in_good_order = False
            try:
                in_good_order = await self._pass(link, to, reader, writer)
            finally:
                self._connections.pop(writer, None)
                _end(writer, in_good_order)

        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(serve(reader, writer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

        host, port = split_address(listen)
        try:
            return await asyncio.start_server(accepted, host, port, limit=_CHUNK_BYTES)
        except OSError as error:
            raise ConfigError(f"{listen} cannot be bound: {error.strerror or error}; choose other ports") from error

    def _way(self, link: Link) -> _Way:
        way = self._ways.get(link)
        if way is None:
            way = self._ways[link] = _Way(link)
            self._shape(way)
        return way

    def _shape(self, way: _Way) -> None:
        way.shape = shape_of(way.link, self._faults)
        if way.shape.cut:
            way.open.clear()
        else:
            way.open.set()

    def _count(self, way: _Way, figure: str, amount: float) -> None:
        for name in way.shape.by:
            if name in self._stats:
                self._stats[name][figure] = self._stats[name].get(figure, 0) + amount

    def _reset(self, fault: str, links: list[Link]) -> None:
        either = {*links, *((target, source) for source, target in links)}
        victims = [writer for writer, link in self._connections.items() if link in either]
        for writer in victims:
            _reset_socket(writer)
        stats = self._stats[fault]
        stats["connections"] = stats.get("connections", 0) + len(victims)

    async def _pass(self, link: Link, to: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One connection, from its acceptance to its end; whether both ends closed it in good order."""
        there, back = self._way(link), self._way((link[1], link[0]))
        if there.shape.cut or back.shape.cut:
            self._count(there if there.shape.cut else back, "connections", 1)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_HANGS_S):
                    await there.open.wait()
                    await back.open.wait()
            if there.shape.cut or back.shape.cut:
                return False
        await asyncio.sleep((there.shape.delay_ms + back.shape.delay_ms) / 1000)
        try:
            further_reader, further = await asyncio.open_connection(*split_address(to), limit=_CHUNK_BYTES)
        except OSError:
            return False  # nobody lives there: ours is reset, as the caller's would have been
        self._connections[further] = link
        pipes = [
            asyncio.create_task(self._pipe(there, reader, further)),
            asyncio.create_task(self._pipe(back, further_reader, writer)),
        ]
        in_good_order = False
        try:
            # One end that breaks, breaks the other; one that closes, closes one way only.
            await asyncio.gather(*pipes)
            in_good_order = True
        except OSError:
            pass  # said to both ends below
        finally:
            self._connections.pop(further, None)
            _end(further, in_good_order)  # before anything is waited for: a second cancellation may come
            for pipe in pipes:
                pipe.cancel()
            await asyncio.gather(*pipes, return_exceptions=True)
        return in_good_order

    async def _pipe(self, way: _Way, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Everything from one to the other, each chunk when its time has come. Raises OSError when an end breaks."""
        held: asyncio.Queue[_Held] = asyncio.Queue(_HELD_CHUNKS)
        taking = asyncio.create_task(self._take(way, reader, held))
        try:
            while True:
                due_s, data = await held.get()
                await way.open.wait()
                await asyncio.sleep(max(0.0, due_s - time.monotonic()))
                if isinstance(data, OSError):
                    raise data
                if not data:
                    writer.write_eof()
                    return
                await self._give(way, data, writer)
        finally:
            taking.cancel()
            await asyncio.gather(taking, return_exceptions=True)

    async def _take(self, way: _Way, reader: asyncio.StreamReader, held: asyncio.Queue[_Held]) -> None:
        due_s = 0.0
        while True:
            try:
                data = await reader.read(_CHUNK_BYTES)
            except OSError as error:
                await held.put((due_s, error))
                return
            shape, now_s = way.shape, time.monotonic()
            delay_s = max(0.0, shape.delay_ms + self._random.uniform(-1, 1) * shape.jitter_ms) / 1000
            if not data:
                delay_s += shape.close_ms / 1000
                if shape.close_ms:
                    self._count(way, "connections", 1)
            due_s = max(due_s, now_s + delay_s)  # in order, whatever the jitter
            if shape.by:
                self._count(way, "bytes", len(data))
                if shape.cut:
                    self._count(way, "held_bytes", len(data))
                for name in shape.by:
                    if name in self._stats:
                        most = max(self._stats[name].get("delayed_ms_max", 0), round(delay_s * 1000, 1))
                        self._stats[name]["delayed_ms_max"] = most
            await held.put((due_s, data))
            if not data:
                return

    async def _give(self, way: _Way, data: bytes, writer: asyncio.StreamWriter) -> None:
        while data:
            await way.open.wait()
            rate = way.shape.rate_bytes_s
            # A tenth of a second's worth at a time, so that a change of the rate is felt.
            part, data = (data[: max(1, int(rate / 10))], data[max(1, int(rate / 10)) :]) if rate else (data, b"")
            if rate:
                await asyncio.sleep(len(part) / rate)
            writer.write(part)
            await writer.drain()


def _end(writer: asyncio.StreamWriter, in_good_order: bool) -> None:
    if in_good_order:
        writer.close()
    else:
        _reset_socket(writer)


def _reset_socket(writer: asyncio.StreamWriter) -> None:
    """Close without a farewell: the other end hears of a reset."""
    plain = writer.get_extra_info("socket")
    if plain is not None and not writer.transport.is_closing():
        with contextlib.suppress(OSError):  # closed meanwhile
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _write(path: Path, value: Mapping[str, Any]) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value))
    os.replace(temporary, path)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None


async def _main(folder: Path) -> None:
    work = asyncio.create_task(Relay(RelayFiles(folder)).run())
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, work.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await work


if __name__ == "__main__":
    try:
        asyncio.run(_main(Path(sys.argv[1])))
    except ConfigError as error:
        print(f"relay: {error}", file=sys.stderr)  # noqa: T201 - this program's own words
        sys.exit(2)
