"""The loads: each runs on ours and on the peer in turn, and notes its figures. None keeps state between the two."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from chaos.bench import load
from chaos.bench.budget import check_perf_rounds
from chaos.bench.context import Context
from chaos.bench.faults import cut_links, gaps
from chaos.bench.figures import percentile
from chaos.bench.peers import OURS, Peer, etcdctl, started
from chaos.bench.sizes import sizes

__all__ = ["CASES", "OWN_CLUSTERS"]

_KEYS: Final = 10_000
_VALUE_BYTES: Final = 256
_WATCHERS: Final = 1_000
_WATCHED_RATE: Final = 20


async def writes(context: Context) -> None:
    """Closed loops of 1, 64 and 500 clients, 256-byte values."""
    for clients in (1, 64, 500):
        what = f"writes, {clients} client{'s' * (clients > 1)}"
        for peer in context.turns():
            context.step(f"{what}: {peer.kind}")
            await _closed(context, peer, what, clients, load.put_of(_KEYS, _VALUE_BYTES, seed=clients))


async def steady_writes(context: Context) -> None:
    """Open loops at rates that both can serve: the latency a client sees when nothing is overloaded."""
    for clients, rate in ((1, 200), (64, 1_000), (500, 1_000)):
        what = f"open loop, {rate:,} writes/s by {clients} client{'s' * (clients > 1)}"
        for peer in context.turns():
            context.step(f"{what}: {peer.kind}")
            before = peer.cpu_s()
            call = load.put_of(_KEYS, _VALUE_BYTES, seed=rate)
            sample = await load.open_loop(peer.clients, clients, rate, context.settings.seconds, call, seed=rate)
            context.note_sample(peer, what, sample, peer.cpu_s() - before)


async def reads(context: Context) -> None:
    """64 clients reading one random key each."""
    for serializable in (False, True):
        what = f"{'serializable' if serializable else 'linearizable'} reads, 64 clients"
        for peer in context.turns():
            context.step(f"{what}: {peer.kind}")
            await _closed(context, peer, what, 64, load.range_of(_KEYS, serializable=serializable, seed=1))


async def mixed(context: Context) -> None:
    """64 clients, 80 % linearizable reads, 20 % writes."""
    what = "80 % reads and 20 % writes, 64 clients"
    for peer in context.turns():
        context.step(f"{what}: {peer.kind}")
        await _closed(context, peer, what, 64, load.mixed(0.8, _KEYS, _VALUE_BYTES, seed=2))


async def _closed(context: Context, peer: Peer, what: str, clients: int, call: load.Call) -> None:
    before = peer.cpu_s()
    sample = await load.closed_loop(peer.clients, clients, context.settings.seconds, call)
    context.note_sample(peer, what, sample, peer.cpu_s() - before)


async def check_perf(context: Context) -> None:
    """`etcdctl check perf --load=l`: etcd's own load generator, 500 clients, one minute."""
    for peer in context.turns(check_perf_rounds(context.settings)):
        context.step(f"etcdctl check perf --load=l: {peer.kind}")
        # Its exit code is its own opinion of the figures.
        text = await etcdctl("check", "perf", "--load=l", "--prefix=/bench-check-perf/", endpoints=peer.clients,
                             check=False)  # fmt: skip
        rate = re.search(r"[Tt]hroughput (?:is|too low:) (\d+)", text)
        slowest = re.search(r"[Ss]lowest request took(?: too long:)? ([\d.]+)s", text)
        if rate is None or slowest is None:
            raise RuntimeError(f"etcdctl check perf said nothing to be read: {text[-500:]}")
        context.note(peer, "etcdctl check perf, load l: writes", float(rate.group(1)), "/s", more_is_better=True)
        context.note(peer, "etcdctl check perf, load l: slowest", float(slowest.group(1)) * 1000, "ms")


async def fan_out(context: Context) -> None:
    """One writer at 20/s, 1,000 watchers of its key."""
    what = "1 writer at 20/s, 1,000 watchers"
    for peer in context.turns():
        context.step(f"{what}: {peer.kind}")
        number = max(10, int(context.settings.seconds * _WATCHED_RATE))
        sample = await load.watchers(peer.clients, _WATCHERS, number, _WATCHED_RATE)
        context.note(peer, f"{what}: events", sample.per_second, "/s", more_is_better=True)
        for share, label in ((0.5, "p50"), (0.99, "p99")):
            context.note(peer, f"{what}: {label} delay", percentile(sample.latencies_s, share) * 1000, "ms")
        context.note_generator(peer, what, sample)


async def keep_alives(context: Context) -> None:
    """200 leases, each renewed as soon as it was."""
    what = "lease keep-alives, 200 leases"
    for peer in context.turns():
        context.step(f"{what}: {peer.kind}")
        sample = await load.keep_alives(peer.clients, 200, context.settings.seconds)
        context.note(peer, f"{what}: throughput", sample.per_second, "/s", more_is_better=True)
        context.note(peer, f"{what}: p99", percentile(sample.latencies_s, 0.99) * 1000, "ms")
        context.note_generator(peer, what, sample)


async def stalls(context: Context) -> None:
    """The longest that our event loop kept everybody waiting, heartbeats included, while 64 clients write, two list
    10,000 keys of 1 KB over and over, and a snapshot is cut every 2,000 entries. etcd has no such thing."""
    context.step("longest stall of the loop under writes, long lists and snapshots: quarterdeck")
    args = ("--snapshot-entries", "2000")
    async with started(OURS, context.folder / "stalls", context.port_base, replica_args=args) as ours:
        await load.fill(ours.clients, 10_000, 1_000)
        before = await ours.loop_lag()
        seconds = context.settings.seconds
        written, listed = await asyncio.gather(
            load.closed_loop(ours.clients, 64, seconds, load.put_of(_KEYS, _VALUE_BYTES, seed=3)),
            load.closed_loop(ours.clients, 2, seconds, load.list_of(b"fill/")),
        )
        after = await ours.loop_lag()
        for sample in (written, listed):
            if sample.errors:
                raise RuntimeError(f"{len(sample.errors)} calls failed, such as {sample.errors[0]!r}")
    what = "writes, long lists and snapshots at once"
    context.note(ours, f"{what}: writes", written.per_second, "/s", more_is_better=True)
    context.note(ours, f"{what}: lists of 10,000 keys", listed.per_second, "/s", more_is_better=True)
    for name, lag in after.items():
        context.note(ours, f"{what}: longest stall of a replica's loop", lag.longest_since(before[name]) * 1000, "ms")


CASES: Final[Mapping[str, Callable[[Context], Awaitable[None]]]] = {
    "writes": writes,
    "steady": steady_writes,
    "reads": reads,
    "mixed": mixed,
    "check-perf": check_perf,
    "watch": fan_out,
    "leases": keep_alives,
    "gaps": gaps,
    "stalls": stalls,
    "cut-links": cut_links,
    "sizes": sizes,
}
#: Cases that start clusters themselves, and run while no other is up.
OWN_CLUSTERS: Final = frozenset({"stalls", "sizes", "cut-links"})
