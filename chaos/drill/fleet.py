"""The fleet of a drill: a local cluster with pods and data, and the ``qd`` that an operator would type.

Owns the cluster's life, its load of keys, and the looks that a verdict needs: what is stored, which processes run.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from chaos.bench.h2client import CallFailedError, connect
from chaos.bench.load import fill
from chaos.bench.peers import PUT
from chaos.observe import processes_of_pods
from controlplane.base.errors import QuarterdeckError
from controlplane.local.cluster import FOLDER, LocalCluster
from controlplane.local.spec import ARCHIVE, plan
from controlplane.pb.etcd import rpc_pb2

__all__ = ["OWN", "Done", "DrillFailedError", "Fleet"]

#: Keys that a drill writes meanwhile begin so: they are no part of what is compared.
OWN: Final = b"drill/"
_WEB: Final = Path(__file__).resolve().parents[2] / "examples" / "web.yaml"
_FIRST_WRITE_MAX_S: Final = 120.0
#: Often, so that a drill need not wait for the next; and kept for longer than a drill takes on a slow machine.
_SNAPSHOT_EVERY: Final = "10s"
_KEPT: Final = "last=60"
_INTERRUPT_S: Final = 30.0


class DrillFailedError(QuarterdeckError):
    """The drill did not end as it must; the message says what was wrong."""


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str
    seconds: float


class Fleet:
    """Three replicas, three agents, six pods behind a Service, under ``folder``."""

    def __init__(self, folder: Path, port_base: int) -> None:
        spec = plan(replicas=3, nodes=3, port_base=port_base, tls=False, archive=ARCHIVE)
        often = ("--archive-snapshot-every", _SNAPSHOT_EVERY, "--archive-keep", _KEPT)
        spec = dataclasses.replace(spec, extra_replica_args=often)
        self.root = folder / FOLDER
        self._port_base = port_base
        LocalCluster.create(self.root, spec)

    @property
    def cluster(self) -> LocalCluster:
        """As its folder says now: a restore makes it another cluster."""
        return LocalCluster.open(self.root)

    @property
    def replicas(self) -> Sequence[str]:
        return [replica.name for replica in self.cluster.spec.replicas]

    @property
    def archive(self) -> Path:
        return self.root / ARCHIVE

    async def up(self, keys: int, value_bytes: int = 1_000) -> None:
        """Start everything, wait until the Service answers, write the keys."""
        up = ("local", "up", "--no-tls", "--port-base", str(self._port_base))
        await self.ok(*up, "--apply", str(_WEB), "--timeout", "120")
        await fill(self.cluster.spec.endpoints, keys, value_bytes)

    def down(self) -> None:
        """Stop everything and remove the folder."""
        self.cluster.down()
        self.cluster.destroy()

    # -- commands ------------------------------------------------------------------------------------------------

    async def qd(self, *argv: str) -> Done:
        """Run ``qd`` to its end."""
        began_s = time.monotonic()
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "from controlplane.cli.main import main; main()", *argv,
            env={**os.environ, "QD_FOLDER": str(self.root), "QD_ENDPOINTS": "", "COLUMNS": "200"},
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            out, err = await child.communicate()
        except asyncio.CancelledError:
            # It stops what it has started, which nobody but it may know of yet.
            with contextlib.suppress(ProcessLookupError):
                child.send_signal(signal.SIGINT)
            await asyncio.wait({asyncio.ensure_future(child.communicate())}, timeout=_INTERRUPT_S)
            if child.returncode is None:
                child.kill()
                await child.wait()
            raise
        return Done(child.returncode or 0, out.decode(), err.decode(), time.monotonic() - began_s)

    async def ok(self, *argv: str) -> Done:
        """Run one that must succeed. Raises DrillFailedError with what it said."""
        done = await self.qd(*argv)
        if done.code:
            raise DrillFailedError(f"qd {' '.join(argv)} ended with {done.code}: {(done.err or done.out).strip()}")
        return done

    # -- disasters -----------------------------------------------------------------------------------------------

    def lose_everything(self) -> float:
        """kill -9 of every replica, and their disks. When the last was dead, on the monotonic clock."""
        cluster = self.cluster
        for name in self.replicas:
            cluster.kill(name)
        dead_s = time.monotonic()
        for name in self.replicas:
            cluster.destroy_replica_data(name)
        return dead_s

    async def first_write(self, since_s: float) -> float:
        """Seconds from ``since_s`` until any replica acknowledges a write: each is asked for ever."""
        put = rpc_pb2.PutRequest(key=OWN + b"first-write", value=b"x").SerializeToString()

        async def ask(endpoint: str) -> None:
            while True:
                with contextlib.suppress(OSError, CallFailedError, TimeoutError):
                    async with asyncio.timeout(2.0):
                        client = await connect(endpoint)
                        try:
                            await client.unary(PUT, put)
                        finally:
                            client.close()
                    return
                await asyncio.sleep(0.005)

        asking = [asyncio.create_task(ask(endpoint)) for endpoint in self.cluster.spec.endpoints]
        try:
            done, _ = await asyncio.wait(asking, timeout=_FIRST_WRITE_MAX_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in asking:
                task.cancel()
        if not done:
            raise DrillFailedError(f"no write was acknowledged within {_FIRST_WRITE_MAX_S:g} s")
        return time.monotonic() - since_s

    # -- looks ---------------------------------------------------------------------------------------------------

    def processes(self) -> Mapping[str, Sequence[int]]:
        """Pod uid -> its process groups on this machine."""
        return processes_of_pods(self.cluster)

    async def restarts(self, before: Mapping[str, Sequence[int]]) -> int:
        """How many of the pods that ran before did not run on as the same processes, or are not in the API any more,
        or were started again by what the API knows of them."""
        after = self.processes()
        pods = json.loads((await self.ok("get", "pods", "-A", "-o", "json")).out)["items"]
        restarted = {
            pod["metadata"]["uid"]: sum(c.get("restartCount", 0) for c in pod["status"].get("containerStatuses", ()))
            for pod in pods
        }
        return sum(1 for uid, groups in before.items() if after.get(uid) != groups or restarted.get(uid) != 0)

    async def equals(self, snapshot: Path, but: str) -> None:
        """Raises DrillFailedError: the cluster is not what the file holds, but for keys that begin so."""
        found = await self.differences(snapshot)
        left = [d for d in found if not (d["kind"] == "Key" and d["name"].startswith(but))]
        if left:
            shown = ", ".join(f"{d['change']} {d['kind']} {d['namespace']}/{d['name']}" for d in left[:5])
            raise DrillFailedError(f"{len(left)} objects differ from the snapshot: {shown}")

    async def differences(self, snapshot: Path, *options: str) -> list[dict[str, Any]]:
        """How the cluster differs from what the file holds, as ``qd diff -o json`` says it. Raises DrillFailedError."""
        done = await self.qd("diff", str(snapshot), "-o", "json", *options)
        if done.code not in (0, 1):
            raise DrillFailedError(f"qd diff ended with {done.code}: {done.err.strip()}")
        found: list[dict[str, Any]] = json.loads(done.out)
        return found

    async def gone(self, kind: str, name: str) -> None:
        """Return once there is no such object any more. Raises DrillFailedError."""
        deadline_s = time.monotonic() + 60.0
        while (await self.qd("get", kind, name)).code == 0:
            if time.monotonic() > deadline_s:
                raise DrillFailedError(f"{kind} {name} is not gone after 60 s")
            await asyncio.sleep(0.1)

    async def settled(self) -> None:
        """Return once every node is Ready and the Deployment has what it wants."""
        await self.ok("rollout", "status", "deployment/web", "--timeout", "60s")
        deadline_s = time.monotonic() + 30.0
        while time.monotonic() < deadline_s:
            status = json.loads((await self.qd("status", "-o", "json")).out or "{}")
            nodes = status.get("nodes", [])
            if len(nodes) == len(self.cluster.spec.nodes) and all(node["ready"] for node in nodes):
                return
            await asyncio.sleep(0.1)
        raise DrillFailedError("not every node is Ready 30 s after the restore")
