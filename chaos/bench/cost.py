"""``python -m chaos.bench.cost``: processor time per acknowledged write, which a busy machine hardly changes.

Owns one measurement: a fresh cluster of three, clients that put, and what the members' processes spent meanwhile (user
and system time, all threads). Writes per second depend on what else runs on the machine; this does so only through
caches and the size of batches. Repeat it, and take the median.

The load is our own closed loop, or `etcdctl check perf`, whose Go clients cost a server more: three connections each, a
deadline that differs in every call, and a ping after every answer.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import re
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil

from chaos.bench.h2client import connect
from chaos.bench.load import closed_loop, put_of
from chaos.bench.peers import OURS, PEER, STATUS, Peer, etcdctl
from controlplane.pb.etcd import rpc_pb2

__all__ = ["Cost", "main", "measure"]

_KEYS = 10_000
_VALUE_BYTES = 1_024
_WARM_UP_S = 3.0


@dataclasses.dataclass(frozen=True, slots=True)
class Cost:
    """One measurement. ``by_member_us``: processor time per acknowledged write, the leader's first. ``spread_ms``: the
    99th percentile with our own load, the standard deviation with `check perf`. ``machine_load``: when it began."""

    kind: str
    load: str
    writes: int
    writes_per_s: float
    spread_ms: float
    slowest_ms: float
    cpu_us: float
    by_member_us: tuple[float, ...]
    machine_load: float


@dataclasses.dataclass(frozen=True, slots=True)
class _Figures:
    writes_per_s: float
    spread_ms: float
    slowest_ms: float


async def measure(kind: str, port_base: int, load: str, seconds: float, *, tls: bool = False) -> Cost:
    """Start, warm up, load, stop. ``load``: a number of clients, or a workload of `check perf` (which takes 60 s)."""
    with tempfile.TemporaryDirectory(prefix="cost-") as folder:
        peer = Peer(kind, Path(folder), port_base, tls=tls)
        try:
            await peer.start()
            for name in peer.endpoints:
                await peer.serving(via=name)
            return await _loaded(peer, load, seconds)
        finally:
            await peer.stop()


async def _loaded(peer: Peer, load: str, seconds: float) -> Cost:
    await _closed(peer, 100, _WARM_UP_S)
    machine_load = os.getloadavg()[0]
    leader = await peer.leader()
    names = [leader, *(name for name in peer.endpoints if name != leader)]
    first = await _revision(peer)
    before = [_cpu_s(peer, name) for name in names]
    figures = await (_closed(peer, int(load), seconds) if load.isdigit() else _check_perf(peer, load))
    spent = [_cpu_s(peer, name) - at for name, at in zip(names, before, strict=True)]
    writes = await _revision(peer) - first
    return Cost(
        kind=peer.kind,
        load=load,
        writes=writes,
        **dataclasses.asdict(figures),
        cpu_us=round(1e6 * sum(spent) / writes, 1),
        by_member_us=tuple(round(1e6 * s / writes, 1) for s in spent),
        machine_load=round(machine_load, 1),
    )


async def _closed(peer: Peer, clients: int, seconds: float) -> _Figures:
    call = put_of(_KEYS, _VALUE_BYTES, seed=1)
    sample = await closed_loop(peer.clients, clients, seconds, call, peer.client_tls())
    if sample.errors:
        raise RuntimeError(f"{peer.kind}: {len(sample.errors)} calls failed, the first with: {sample.errors[0]}")
    p99 = statistics.quantiles(sample.latencies_s, n=100)[98]
    return _Figures(round(sample.per_second, 1), round(1000 * p99, 1), round(1000 * max(sample.latencies_s), 1))


async def _check_perf(peer: Peer, load: str) -> _Figures:
    arguments = ["check", "perf", f"--load={load}"]
    if peer.cluster.spec.tls:
        files = peer.cluster.pki.admin
        arguments += ["--cacert", str(files.ca), "--cert", str(files.cert), "--key", str(files.key)]
    text = await etcdctl(*arguments, endpoints=peer.clients, check=False)
    rate = re.search(r"Throughput (?:is|too low: )\D*(\d+)", text)
    slowest = re.search(r"Slowest request took (?:too long: )?([0-9.]+)s", text)
    deviation = re.search(r"Stddev (?:is|too high:) ([0-9.]+)s", text)
    if rate is None or slowest is None or deviation is None:
        raise RuntimeError(f"{peer.kind}: etcdctl check perf said: {text[-500:]}")
    return _Figures(float(rate[1]), round(1000 * float(deviation[1]), 1), round(1000 * float(slowest[1]), 1))


async def _revision(peer: Peer) -> int:
    client = await connect(peer.endpoints[await peer.leader()], peer.client_tls())
    try:
        return rpc_pb2.StatusResponse.FromString(await client.unary(STATUS, b"")).header.revision
    finally:
        client.close()


def _cpu_s(peer: Peer, name: str) -> float:
    pid = peer.pid(name)
    if pid is None:
        raise RuntimeError(f"{name} is not running")
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def main(argv: Sequence[str] | None = None) -> int:
    """Print one line of JSON a measurement, then medians. Exit code 0."""
    parser = argparse.ArgumentParser(prog="python -m chaos.bench.cost", description=__doc__)
    parser.add_argument("--load", default="500", help="clients of our closed loop, or s, m, l, xl: etcdctl check perf")
    parser.add_argument("--seconds", type=float, default=15.0, help="how long our closed loop runs")
    parser.add_argument("--repeat", type=int, default=1, help="measurements of each kind, interleaved")
    parser.add_argument("--etcd", action="store_true", help="measure a three-member etcd beside ours")
    parser.add_argument("--tls", action="store_true", help="ours with TLS on all links")
    parser.add_argument("--port-base", type=int, default=23_000, help="first port to use")
    options = parser.parse_args(argv)
    kinds = (OURS, PEER) if options.etcd else (OURS,)
    found: dict[str, list[Cost]] = {kind: [] for kind in kinds}
    for _ in range(options.repeat):
        for kind in kinds:
            tls = options.tls and kind == OURS
            cost = asyncio.run(measure(kind, options.port_base, options.load, options.seconds, tls=tls))
            found[kind].append(cost)
            _say(dataclasses.asdict(cost))
    for kind, costs in found.items():
        names = ("writes_per_s", "spread_ms", "slowest_ms", "cpu_us")
        _say({"median_of": kind} | {name: statistics.median(getattr(cost, name) for cost in costs) for name in names})
    return 0


def _say(line: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
