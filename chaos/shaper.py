"""Links of hosts made slow: every packet of a link held back and sent on, as this kernel has no ``netem``.

Runs inside the switch of :mod:`controlplane.local.hosts`, with the links' packets diverted (dropped after this program
has seen them): ``python -m chaos.shaper '{...}'``. It reads a host's packets where its cable enters the switch, and
sends each on where the receiver's cable leaves. Segments that the kernel has joined, and checksums it has left to the
card, are passed on as such (virtio's header before each packet).

Owns the order of packets (kept, per link), what is held (at most :data:`_QUEUE_BYTES_MAX` a link, more is lost, as in a
switch) and a file that tells what was done. Uses the standard library only, so that it starts at once.
"""

from __future__ import annotations

import heapq
import json
import os
import random
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

__all__ = ["Order", "Pacer", "main"]

#: All packets: the bridge takes those of a port before anybody who asks for one kind of them.
_ETH_P_ALL: Final = 0x0003
_IPV4: Final = b"\x08\x00"
_SOL_PACKET: Final = 263
_PACKET_VNET_HDR: Final = 15
_PACKET_IGNORE_OUTGOING: Final = 23
#: The header's length, and after it an Ethernet frame: to whom, from whom, what.
_VNET_BYTES: Final = 10
_FRAME_BYTES_MAX: Final = 70_000
_QUEUE_BYTES_MAX: Final = 4 * 1024 * 1024
_SAY_S: Final = 0.2
_FIN: Final = 0x01


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be done, as the command line's JSON says it.

    Attributes:
        links: [port it enters by, port it leaves by, the receiver's hardware address].
        stats: the file that tells what was done.
        delay_ms, jitter_ms: each packet is held that long, plus or minus.
        rate_bytes_s: no faster than that; 0: as fast as it goes.
        ends_only: only packets that end a TCP stream are diverted here.
        seed: of the jitter.
    """

    links: list[tuple[str, str, str]]
    stats: str
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    rate_bytes_s: float = 0.0
    ends_only: bool = False
    seed: int = 0


@dataclass(slots=True)
class Pacer:
    """When the packets of one link leave. Pure: times are told, in seconds."""

    order: Order
    random: random.Random
    free_s: float = 0.0
    last_s: float = 0.0
    queued: int = 0
    lost: int = 0

    def leaves_at(self, now_s: float, size: int) -> float | None:
        """When a packet that came now leaves; None: the queue is full, and it is lost."""
        if self.queued + size > _QUEUE_BYTES_MAX:
            self.lost += 1
            return None
        order = self.order
        sent_s = now_s
        if order.rate_bytes_s:
            self.free_s = sent_s = max(now_s, self.free_s) + size / order.rate_bytes_s
        delay_s = max(0.0, order.delay_ms + self.random.uniform(-1, 1) * order.jitter_ms) / 1000
        self.last_s = max(self.last_s, sent_s + delay_s)  # in order, whatever the jitter
        self.queued += size
        return self.last_s


@dataclass(slots=True)
class _Done:
    frames: int = 0
    bytes: int = 0
    delayed_ms_max: float = 0.0
    refused: int = 0
    said_s: float = field(default=0.0)


class _Shaper:
    def __init__(self, order: Order) -> None:
        self._order = order
        self._done = _Done()
        source = random.Random(order.seed)  # noqa: S311 - jitter, no secret
        self._ways: dict[tuple[str, bytes], tuple[Pacer, socket.socket]] = {}
        leaving = {port: _port(port, heard=False) for port in {link[1] for link in order.links}}
        for port, to, mac in order.links:
            self._ways[port, bytes.fromhex(mac.replace(":", ""))] = Pacer(order, source), leaving[to]
        self._entering = {_port(port, heard=True): port for port in {link[0] for link in order.links}}
        self._held: list[tuple[float, int, bytes, Pacer, socket.socket]] = []
        self._count = 0
        self._stop = False

    def stop(self, *_: object) -> None:
        self._stop = True

    def run(self) -> None:
        self._say(force=True)
        while not self._stop:
            wait_s = min(_SAY_S, max(0.0, self._held[0][0] - time.monotonic())) if self._held else _SAY_S
            for heard in select.select(list(self._entering), [], [], wait_s)[0]:
                self._take(heard)
            self._give(time.monotonic())
            self._say()
        self._give(float("inf"))  # nothing is kept back
        self._say(force=True)

    def _take(self, heard: socket.socket) -> None:
        for _ in range(64):
            try:
                data = heard.recv(_FRAME_BYTES_MAX)
            except BlockingIOError:
                return
            frame = data[_VNET_BYTES:]
            way = self._ways.get((self._entering[heard], frame[:6]))
            if way is None or frame[12:14] != _IPV4 or (self._order.ends_only and not _ends_stream(frame)):
                continue  # of a link that is not ours: the switch passes it on
            pacer, leaving = way
            now_s = time.monotonic()
            due_s = pacer.leaves_at(now_s, len(data))
            if due_s is not None:
                self._count += 1
                self._done.delayed_ms_max = max(self._done.delayed_ms_max, (due_s - now_s) * 1000)
                heapq.heappush(self._held, (due_s, self._count, data, pacer, leaving))

    def _give(self, now_s: float) -> None:
        while self._held and self._held[0][0] <= now_s:
            _, _, data, pacer, leaving = heapq.heappop(self._held)
            pacer.queued -= len(data)
            try:
                leaving.send(data)
            except OSError:
                self._done.refused += 1  # no buffer, or dropped by a cut behind us: lost, as any packet may be
                continue
            self._done.frames += 1
            self._done.bytes += len(data) - _VNET_BYTES

    def _say(self, *, force: bool = False) -> None:
        now_s = time.monotonic()
        if not force and now_s - self._done.said_s < _SAY_S:
            return
        self._done.said_s = now_s
        lost = self._done.refused + sum(pacer.lost for pacer, _ in self._ways.values())
        text = json.dumps(
            {
                "packets": self._done.frames, "bytes": self._done.bytes, "packets_lost": lost,
                "delayed_ms_max": round(self._done.delayed_ms_max, 1),
            }
        )  # fmt: skip
        path = Path(self._order.stats)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(text)
        os.replace(temporary, path)


def _ends_stream(frame: bytes) -> bool:
    """Whether an Ethernet frame of IPv4 holds a TCP segment with FIN."""
    if len(frame) < 54 or frame[23] != socket.IPPROTO_TCP:
        return False
    flags = 14 + 4 * (frame[14] & 0x0F) + 13
    return len(frame) > flags and bool(frame[flags] & _FIN)


def _port(name: str, *, heard: bool) -> socket.socket:
    """A raw socket on a port of the switch, for what comes in there or to send out there."""
    plain = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL) if heard else 0)
    plain.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    if heard:
        plain.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 * 1024 * 1024)
        plain.bind((name, _ETH_P_ALL))
    else:
        plain.bind((name, 0))
    plain.setblocking(False)
    return plain


def main(text: str) -> None:
    """Shape until SIGTERM."""
    raw: dict[str, Any] = json.loads(text)
    shaper = _Shaper(Order(**{**raw, "links": [tuple(link) for link in raw["links"]]}))
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, shaper.stop)
    shaper.run()


if __name__ == "__main__":
    main(sys.argv[1])
