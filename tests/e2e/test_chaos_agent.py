"""Chaos on a cluster that is reached by endpoints only, through an agent: by the command that people type, and by the
agent's own hand when the runner is gone."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from chaos.faults import fault_named
from chaos.ground import Ground
from chaos.remote import RemoteCluster
from controlplane.base import identity
from controlplane.base.rand import SeededRand
from controlplane.client.tls import Reloader
from controlplane.local.cluster import LocalCluster
from tests.e2e.support import QD, WEB, Qd, wait_until

ADDRESS = "127.0.0.1:15990"


@pytest.fixture
def qd(tmp_path: Path) -> Iterator[Qd]:
    made = Qd(tmp_path)
    try:
        made.ok("local", "up", "--nodes", "2", "--port-base", "15450", "--apply", str(WEB))
        with agent(made):
            yield made
    finally:
        made.run("local", "down", "--destroy")


class agent:  # noqa: N801 - reads as a function
    """The agent of this machine, which may break every process of the cluster."""

    def __init__(self, qd: Qd) -> None:
        cluster = LocalCluster.open(qd.root)
        files = cluster.pki.ensure(identity.node("chaos-agent"), ["127.0.0.1"])
        start = [str(QD), "--folder", str(qd.root), "local", "start"]
        processes = {
            r.name: {
                "kind": "replica", "endpoint": r.client, "pid-file": str(qd.root / "run" / f"{r.name}.json"),
                "start": [*start, r.name], "data-dir": str(cluster.replica_dir(r.name)),
                "failpoints-file": str(qd.root / "run" / f"{r.name}.failpoints"),
            }
            for r in cluster.spec.replicas
        } | {
            n.name: {
                "kind": "node", "pid-file": str(qd.root / "run" / f"{n.name}.json"), "start": [*start, n.name],
                "state-dir": str(cluster.node_dir(n.name)),
            }
            for n in cluster.spec.nodes
        }  # fmt: skip
        raw = {"version": 1, "machine": "here", "state-dir": str(qd.folder / "agent"), "processes": processes}
        config = qd.folder / "agent.yaml"
        config.write_text(yaml.safe_dump(raw))
        self._log = (qd.folder / "agent.log").open("wb")
        self._argv = [
            str(QD), "chaos", "agent", "--config", str(config), "--listen", ADDRESS, "--tls-ca", str(files.ca),
            "--tls-cert", str(files.cert), "--tls-key", str(files.key),
        ]  # fmt: skip

    def __enter__(self) -> None:
        self._child = subprocess.Popen(self._argv, stdout=self._log, stderr=self._log)
        log = Path(self._log.name)
        wait_until(lambda: "chaos agent up" in log.read_text() or self._child.poll() is not None, 60)
        assert self._child.poll() is None, log.read_text()

    def __exit__(self, *_: object) -> None:
        self._child.terminate()
        self._child.wait(30)
        self._log.close()


async def _write(ground: Ground) -> None:
    """There must be something that was not synced."""
    while True:
        await ground.patiently(lambda: ground.kv.put(b"/test", b"kept"))


@pytest.mark.slow
@pytest.mark.timeout(480)
async def test_faults_are_orders_and_whoever_orders_may_vanish(qd: Qd) -> None:
    local = LocalCluster.open(qd.root)
    credentials = Reloader(local.pki.admin)
    cluster = RemoteCluster(qd.folder / "remote", [ADDRESS], credentials)
    try:
        assert cluster.spec.endpoints == local.spec.endpoints
        async with Ground.open(cluster, say=lambda _: None) as ground:
            for name, params in (
                ("pause", {}),
                ("cpu-throttle", {"percent": 3}),
                ("disk-error", {}),
                ("tear", {}),
                ("flip", {}),
                ("rolling-restart", {}),
                ("memory-pressure", {"mib": 64}),
            ):
                fault = fault_named(name)
                if ground.missing(fault) is not None:
                    continue  # no control groups: the agent says so
                seen = await ground.look()
                assert seen.leader is not None
                strike = fault.plan(ground, [seen.leader], params, SeededRand(5))
                writing = asyncio.create_task(_write(ground))
                await fault.strike(ground, strike)
                await ground.clock.sleep(1.0)
                writing.cancel()
                await asyncio.gather(writing, return_exceptions=True)
                proof = await fault.proof(ground, strike)
                for undo in strike.undo:
                    await fault.heal(ground, undo)
                assert proof.get("bit", True) is True, f"{name}: {proof}"
                assert await ground.replicas.until_whole(30, lambda: None), f"not whole after {name}"
            assert "touch no links" in str(ground.missing(fault_named("partition")))
            assert "command of its own file" in str(ground.missing(fault_named("clock-step")))
    finally:
        cluster.close()
    whole = (
        "--endpoints", ",".join(local.spec.endpoints), "--ca", str(local.pki.admin.ca), "--cert",
        str(local.pki.admin.cert), "--key", str(local.pki.admin.key), "chaos",
    )  # fmt: skip
    ran = qd.run(*whole, "run", "leader-kill", "--agents", ADDRESS, "--seed", "1")
    assert ran.returncode == 0, f"{ran.stdout}\n{ran.stderr}"
    assert "PASS" in ran.stdout
    # What agents have no order for is said before, and is no pass.
    listed = qd.ok(*whole, "list", "--faults", "--agents", ADDRESS)
    assert "agents touch no links" in listed.stdout
    planned = qd.ok(*whole, "dry-run", "leader-isolated", "--agents", ADDRESS)
    assert "impossible: partition cannot be made here: agents touch no links" in planned.stdout
    ran = qd.run(*whole, "run", "leader-isolated", "--agents", ADDRESS)
    assert ran.returncode == 4, f"{ran.stdout}\n{ran.stderr}"
    assert "INCONCLUSIVE" in ran.stdout
