"""Whole clusters on hosts of their own, and behind relays: the Service answers, and every fault of links bites and is
healed, also by a process that knows nothing but the undo."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from chaos.faults import fault_named
from chaos.ground import Ground
from controlplane.base.rand import SeededRand
from controlplane.local.cluster import LocalCluster
from tests.e2e.support import WEB, Qd

#: Fault -> what makes it bite within a second or two between idle replicas.
_BITES: Mapping[str, Mapping[str, Any]] = {
    "partition": {},
    "loss": {"percent": 50},
    "latency": {"delay_ms": 60, "jitter_ms": 20},
    "bandwidth": {"rate_kbit": 512},
    "slow-close": {"delay_ms": 300},
    "reset": {},
    "flapping": {"down_ms": 100, "up_ms": 100},
}


@pytest.fixture
def qd(tmp_path: Path) -> Iterator[Qd]:
    made = Qd(tmp_path)
    try:
        yield made
    finally:
        made.run("local", "down", "--destroy")


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


@asynccontextmanager
async def opened(qd: Qd) -> AsyncIterator[Ground]:
    async with Ground.open(LocalCluster.open(qd.root), say=lambda _: None) as ground:
        await ground.look()
        yield ground


async def bite(ground: Ground, fault: str, *, seconds: float = 1.0, **params: Any) -> Mapping[str, Any]:
    """Strike the leader's links to other replicas, wait, prove, heal twice."""
    seen = await ground.look()
    assert seen.leader is not None
    made = fault_named(fault)
    assert made.missing(ground) is None
    strike = made.plan(ground, [seen.leader], {"others": "replicas", **params}, SeededRand(3))
    await made.strike(ground, strike)
    try:
        if fault == "slow-close":  # somebody's end must come: the leader's links are closed by its death
            ground.cluster.kill(seen.leader)
        await ground.clock.sleep(seconds)
        proof = await made.proof(ground, strike)
    finally:
        async with opened(Qd(ground.cluster.root.parent)) as another:
            for undo in strike.undo:
                await made.heal(ground, undo)
                await made.heal(another, undo)
    ground.cluster.start(seen.leader)
    assert await ground.replicas.until_whole(30, lambda: None)
    return proof


@pytest.mark.slow
@pytest.mark.hosts
async def test_on_hosts_of_their_own_pods_serve_and_every_fault_of_links_bites(qd: Qd) -> None:
    up = qd.ok("local", "up", "--hosts", "netns", "--nodes", "2", "--port-base", "15250", "--apply", str(WEB))
    assert "service web answers: 1/1" in up.stderr
    assert "already running" in qd.ok("local", "up", "--hosts", "netns", "--nodes", "2", "--port-base", "15250").stderr
    async with opened(qd) as ground:
        for fault, params in _BITES.items():
            proof = await bite(ground, fault, **params)
            assert proof["bit"] is True, f"{fault}: {proof}"
        assert ground.cluster.hosts.faults() == set()
        # Clients, too, are behind a link.
        proof = await bite(ground, "partition", others="clients", seconds=0.3)
        assert proof["packets_dropped"] > 0
    # A reboot takes the namespaces and leaves the records; whoever starts next finds nothing in the way.
    ip("netns", "delete", "qd56-switch")
    qd.ok("local", "down")
    assert "qd56-" not in ip("netns")
    assert not qd.processes()


@pytest.mark.slow
async def test_behind_relays_every_fault_of_links_but_lost_packets_bites(qd: Qd) -> None:
    up = qd.ok("local", "up", "--hosts", "links", "--nodes", "2", "--port-base", "15500", "--apply", str(WEB))
    assert "service web answers: 1/1" in up.stderr
    async with opened(qd) as ground:
        assert "no packets" in str(fault_named("loss").missing(ground))
        for fault, params in _BITES.items():
            if fault != "loss":
                proof = await bite(ground, fault, **params)
                assert proof["bit"] is True, f"{fault}: {proof}"
        # Agents are behind the relay too: one that reaches no replica ends its session.
        made = fault_named("partition")
        strike = made.plan(ground, ["node-1"], {"others": "replicas"}, SeededRand(3))
        assert strike.excused == ("node-1",)
        await made.strike(ground, strike)
        await ground.clock.sleep(1.0)
        proof = await made.proof(ground, strike)
        await made.heal(ground, strike.undo[0])
        assert proof["held_bytes"] > 0
    qd.ok("local", "down")
    assert not qd.processes()
