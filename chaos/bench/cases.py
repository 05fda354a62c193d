"""What is measured, case by case: each runs on ours and on the peer in turn, and notes its figures.

Every case says what it needs; none keeps state between the two. Long ones report progress through ``say``.
"""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from chaos.bench import load
from chaos.bench.figures import Figures, percentile
from chaos.bench.peers import OURS, PEER, Peer, etcdctl, started
from chaos.netns import Hosts, missing

__all__ = ["CASES", "Context"]


@dataclass
class Context:
    """What a case is given.

    Attributes:
        pair: both clusters, running, for cases that only add load; each case runs on one and then the other.
        folder: for clusters of a case's own.
        rounds: how often the two take turns.
        trials: faults per kind and cluster.
        seconds: of one load.
        sizes: numbers of keys for restart and restore.
    """

    pair: tuple[Peer, Peer]
    folder: Path
    rounds: int
    trials: int
    seconds: float
    sizes: tuple[int, ...]
    figures: Figures
    say: Callable[[str], None]

    def note(self, peer: Peer, name: str, value: float, unit: str, *, more_is_better: bool = False) -> None:
        self.figures.note(peer.kind == OURS, name, value, unit, higher_is_better=more_is_better)

    def turns(self) -> list[Peer]:
        """Ours and the peer, alternating who begins."""
        first, second = self.pair
        return [p for i in range(self.rounds) for p in ((first, second) if i % 2 == 0 else (second, first))]


def _latencies(context: Context, peer: Peer, what: str, sample: load.Sample) -> None:
    if sample.errors:
        raise RuntimeError(f"{peer.kind}, {what}: {len(sample.errors)} calls failed, such as {sample.errors[0]!r}")
    context.note(peer, f"{what}: throughput", sample.per_second, "/s", more_is_better=True)
    for share, label in ((0.5, "p50"), (0.99, "p99"), (1.0, "slowest")):
        context.note(peer, f"{what}: {label}", percentile(sample.latencies_s, share) * 1000, "ms")


async def writes(context: Context) -> None:
    """Closed loops of 1, 64 and 500 clients, 256-byte values."""
    for clients in (1, 64, 500):
        for peer in context.turns():
            context.say(f"writes, {clients} clients: {peer.kind}")
            call = load.put_of(10_000, 256, seed=clients)
            sample = await load.closed_loop(list(peer.endpoints.values()), clients, context.seconds, call)
            _latencies(context, peer, f"writes, {clients} client{'s' * (clients > 1)}", sample)


async def steady_writes(context: Context) -> None:
    """An open loop at a rate that both can serve: the latency a client sees when nothing is overloaded."""
    for rate in (200, 1_000):
        for peer in context.turns():
            context.say(f"writes at {rate}/s: {peer.kind}")
            call = load.put_of(10_000, 256, seed=rate)
            sample = await load.open_loop(list(peer.endpoints.values()), 64, rate, context.seconds, call, seed=rate)
            if sample.errors:
                raise RuntimeError(f"{peer.kind}: {len(sample.errors)} calls failed, such as {sample.errors[0]!r}")
            for share, label in ((0.5, "p50"), (0.99, "p99"), (0.999, "p99.9")):
                value = percentile(sample.latencies_s, share) * 1000
                context.note(peer, f"open loop, {rate} writes/s: {label}", value, "ms")


async def reads(context: Context) -> None:
    """64 clients reading one random key each."""
    for serializable in (False, True):
        what = f"{'serializable' if serializable else 'linearizable'} reads, 64 clients"
        for peer in context.turns():
            context.say(f"{what}: {peer.kind}")
            call = load.range_of(10_000, serializable=serializable, seed=1)
            sample = await load.closed_loop(list(peer.endpoints.values()), 64, context.seconds, call)
            _latencies(context, peer, what, sample)


async def mixed(context: Context) -> None:
    """64 clients, 80 % linearizable reads, 20 % writes."""
    for peer in context.turns():
        context.say(f"mixed: {peer.kind}")
        call = load.mixed(0.8, 10_000, 256, seed=2)
        sample = await load.closed_loop(list(peer.endpoints.values()), 64, context.seconds, call)
        _latencies(context, peer, "80 % reads and 20 % writes, 64 clients", sample)


async def check_perf(context: Context) -> None:
    """`etcdctl check perf --load=l`: etcd's own load generator, 500 clients, one minute."""
    for peer in context.turns():
        context.say(f"etcdctl check perf --load=l: {peer.kind}")
        endpoints = list(peer.endpoints.values())
        done = await asyncio.to_thread(
            etcdctl, "check", "perf", "--load=l", "--prefix=/bench-check-perf/", endpoints=endpoints
        )
        text = done.stdout + done.stderr
        rate = re.search(r"[Tt]hroughput (?:is|too low:) (\d+)", text)
        slowest = re.search(r"[Ss]lowest request took(?: too long:)? ([\d.]+)s", text)
        if rate is None or slowest is None:
            raise RuntimeError(f"etcdctl check perf said nothing to be read: {text[-500:]}")
        context.note(peer, "etcdctl check perf, load l: writes", float(rate.group(1)), "/s", more_is_better=True)
        context.note(peer, "etcdctl check perf, load l: slowest", float(slowest.group(1)) * 1000, "ms")


async def fan_out(context: Context) -> None:
    """One writer at 20/s, 1,000 watchers of its key."""
    for peer in context.turns():
        context.say(f"1,000 watchers: {peer.kind}")
        rate, delays = await load.watchers(list(peer.endpoints.values()), 1_000, 100, 20)
        context.note(peer, "1 writer, 1,000 watchers: events", rate, "/s", more_is_better=True)
        context.note(peer, "1 writer, 1,000 watchers: p99 delay", percentile(delays, 0.99) * 1000, "ms")


async def keep_alives(context: Context) -> None:
    """200 leases, each renewed as soon as it was."""
    for peer in context.turns():
        context.say(f"keep-alives: {peer.kind}")
        sample = await load.keep_alives(list(peer.endpoints.values()), 200, context.seconds)
        context.note(peer, "lease keep-alives, 200 leases", sample.per_second, "/s", more_is_better=True)
        context.note(peer, "lease keep-alives: p99", percentile(sample.latencies_s, 0.99) * 1000, "ms")


async def _gap(peer: Peer, fault: str) -> float:
    """One fault on the leader, its repair, and the gap it made."""
    leader = await peer.leader()
    endpoints = list(peer.endpoints.values())
    number = {"kill -9": signal.SIGKILL, "SIGSTOP": signal.SIGSTOP, "SIGTERM": signal.SIGTERM}[fault]
    gap = await load.longest_gap(
        endpoints, lambda: peer.signal(leader, number), 0.7, 4.0 if fault == "SIGSTOP" else 3.5
    )
    if fault == "SIGSTOP":
        peer.signal(leader, signal.SIGCONT)
        await peer.serving(via=leader)
    else:
        await peer.gone(leader)
        await peer.restart(leader)
    await asyncio.sleep(0.5)
    return gap


async def gaps(context: Context) -> None:
    """The longest time without an acknowledged write around a fault of the leader; three writers, one a member.

    The two clusters take turns trial by trial.
    """
    for fault in ("kill -9", "SIGSTOP", "SIGTERM"):
        for trial in range(context.trials):
            for peer in context.pair if trial % 2 == 0 else reversed(context.pair):
                context.say(f"write gap, {fault} of the leader, trial {trial + 1}/{context.trials}: {peer.kind}")
                _note_gap(context, peer, fault, await _gap(peer, fault))


async def cut_links(context: Context) -> None:
    """The same when the leader's links to the other members are dead for 4 s: packets get lost, nobody is told. Needs
    root, since each member lives in a network namespace of its own."""
    if (why := missing()) is not None:
        raise RuntimeError(f"links cannot be cut here: {why}; leave this case out with --without cut-links")
    folder = context.folder / "cut"
    with (
        Hosts(["r1", "r2", "r3"], network=100) as our_hosts,
        Hosts(["etcd-1", "etcd-2", "etcd-3"], network=101) as theirs,
    ):
        async with started(OURS, folder, 30_000, our_hosts) as ours, started(PEER, folder, 30_000, theirs) as peer:
            pairs = ((ours, our_hosts), (peer, theirs))
            for trial in range(context.trials):
                for cluster, hosts in pairs if trial % 2 == 0 else reversed(pairs):
                    context.say(f"write gap, leader's links cut, trial {trial + 1}/{context.trials}: {cluster.kind}")
                    leader = await cluster.leader()
                    endpoints = list(cluster.endpoints.values())
                    gap = await load.longest_gap(endpoints, partial(hosts.isolate, leader), 0.7, 4.0)
                    hosts.heal()
                    await cluster.serving(via=leader)
                    await asyncio.sleep(0.5)
                    _note_gap(context, cluster, "cut links", gap)


def _note_gap(context: Context, peer: Peer, fault: str, gap_s: float) -> None:
    context.note(peer, f"longest write gap, {fault} of the leader", gap_s, "s")


async def sizes(context: Context) -> None:
    """Memory per key, restart of all members, and snapshot restore into a new cluster, by number of 1 KB keys."""
    for keys in context.sizes:
        for kind in (OURS, PEER):
            context.say(f"{keys:,} keys: {kind}")
            async with started(kind, context.folder / f"keys-{keys}", 30_000) as peer:
                empty = peer.memory_bytes()
                begin = time.perf_counter()
                await load.fill(list(peer.endpoints.values()), keys, 1_000)
                filled = time.perf_counter() - begin
                context.note(peer, f"{keys:,} keys of 1 KB: written in transactions of 100", keys / filled, "keys/s",
                             more_is_better=True)  # fmt: skip
                per_key = (peer.memory_bytes() - empty) / len(peer.endpoints) / keys
                context.note(peer, f"{keys:,} keys of 1 KB: memory per key and member", per_key, "bytes")
                context.note(
                    peer, f"{keys:,} keys of 1 KB: all killed, restarted, first write", await _restart(peer), "s"
                )
                context.note(
                    peer, f"{keys:,} keys of 1 KB: disks lost, restored, first write", await _restore(peer), "s"
                )


async def _restart(peer: Peer) -> float:
    for name in peer.endpoints:
        peer.signal(name, signal.SIGKILL)
    for name in peer.endpoints:
        await peer.gone(name)
    return await peer.start()


async def _restore(peer: Peer) -> float:
    """Snapshot, kill all, lose every disk, restore; seconds from the last kill to the first write."""
    file = peer.cluster.root / "bench.snapshot"
    await peer.save_snapshot(file)
    for name in peer.endpoints:
        peer.signal(name, signal.SIGKILL)
    for name in peer.endpoints:
        await peer.gone(name)
        peer.wipe(name)
    begin = time.perf_counter()
    await peer.restore_snapshot(file)
    await peer.start()
    taken = time.perf_counter() - begin
    file.unlink()
    return taken


CASES: Final[Mapping[str, Callable[[Context], Awaitable[None]]]] = {
    "writes": writes,
    "steady": steady_writes,
    "reads": reads,
    "mixed": mixed,
    "check-perf": check_perf,
    "watch": fan_out,
    "leases": keep_alives,
    "gaps": gaps,
    "cut-links": cut_links,
    "sizes": sizes,
}
