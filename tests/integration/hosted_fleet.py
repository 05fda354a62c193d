"""Three replicas as processes, each on a host of its own, and a disk of its own for one of them.

Owns the processes and where they listen; the hosts are :class:`controlplane.local.hosts.Hosts`. Clients stay outside,
in the root namespace, which reaches every host whatever is cut between the hosts.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from controlplane.client import ApiError, EtcdClient
from controlplane.local.hosts import Hosts

__all__ = ["Fleet", "Replica", "fleet_on_hosts"]

REPOSITORY = Path(__file__).resolve().parents[2]
_PEER, _CLIENT, _HTTP = 7380, 7379, 7381
#: Generous: the machine may be busy. What waits this long is stuck.
PATIENCE_S = 40.0
#: Often, so that who was away is brought up by a snapshot as well as by the log.
_SNAPSHOT_ENTRIES = 200


class Replica:
    """One replica's process, whatever becomes of it."""

    def __init__(self, name: str, hosts: Hosts, folder: Path) -> None:
        self.name = name
        self._hosts = hosts
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        address = hosts.address(name)
        self.endpoint = f"{address}:{_CLIENT}"
        self.http = f"http://{address}:{_HTTP}"
        self.spec = f"{name}={address}:{_PEER}@{self.endpoint}@{address}:{_HTTP}"
        self.data_dir = folder / name
        self.log = folder / f"{name}.log"

    def start(self, cluster: str) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *self._hosts.enter(self.name), sys.executable, "-m", "controlplane", "--name", self.name,
                    "--data-dir", str(self.data_dir), "--initial-cluster", cluster,
                    "--snapshot-entries", str(_SNAPSHOT_ENTRIES),
                ],
                cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def signal(self, signum: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(signum)

    def kill(self) -> None:
        """kill -9, and gone when this returns."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def ready(self) -> tuple[bool, str]:
        """Whether /readyz says so, and what it says."""
        try:
            with urllib.request.urlopen(f"{self.http}/readyz", timeout=3) as answer:
                return True, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return False, error.read().decode()
        except OSError as error:
            return False, str(error)


class Fleet:
    """All of them."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts = hosts
        self.replicas = [Replica(name, hosts, folder) for name in hosts.names]
        self.cluster = ",".join(replica.spec for replica in self.replicas)

    @property
    def endpoints(self) -> Sequence[str]:
        return [replica.endpoint for replica in self.replicas]

    def start(self, replica: Replica) -> None:
        replica.start(self.cluster)

    def others(self, replica: Replica) -> list[Replica]:
        return [other for other in self.replicas if other is not replica]

    async def leader(self) -> Replica:
        """The one whose leadership two of them agree on."""
        async with EtcdClient(self.endpoints, attempt_timeout_ms=2_000) as client:
            deadline_s = time.monotonic() + PATIENCE_S
            while time.monotonic() < deadline_s:
                said: dict[int, list[Replica]] = {}
                ids: dict[int, Replica] = {}
                for replica in self.replicas:
                    with contextlib.suppress(ApiError):
                        status = await client.status(replica.endpoint)
                        ids[status.header.member_id] = replica
                        said.setdefault(status.leader, []).append(replica)
                for leader, by in said.items():
                    if len(by) >= 2 and leader in ids:
                        return ids[leader]
                await asyncio.sleep(0.05)
        raise AssertionError(f"no leader that two agree on within {PATIENCE_S:g} s")

    async def serving(self, replica: Replica) -> str:
        """Wait until it serves; what it said. Fails at once if its process has ended."""
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            ready, text = await asyncio.to_thread(replica.ready)
            if ready:
                return text
            tail = replica.log.read_text()[-3000:]
            assert replica.running, f"{replica.name} ended by itself:\n{tail}"
            assert time.monotonic() < deadline_s, f"{replica.name} does not serve: {text}\n{tail}"
            await asyncio.sleep(0.05)

    async def whole(self) -> None:
        """Wait until every replica serves."""
        for replica in self.replicas:
            await self.serving(replica)

    def mend(self) -> None:
        """Undo whatever was done: links, stopped processes, dead ones."""
        self.hosts.heal()
        for replica in self.replicas:
            if replica.running:
                replica.signal(signal.SIGCONT)
            else:
                self.start(replica)


@contextmanager
def _disk_of_its_own(path: Path, size_mb: int) -> Iterator[None]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(path)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


@contextmanager
def fleet_on_hosts(folder: Path, names: Sequence[str], *, network: int, small_disk: str = "") -> Iterator[Fleet]:
    """Started, not waited for. ``small_disk`` names the replica whose data directory is a disk of 64 MB."""
    assert os.geteuid() == 0
    with Hosts(names, network=network) as hosts, ExitStack() as ending:
        fleet = Fleet(hosts, folder)
        for replica in fleet.replicas:
            if replica.name == small_disk:
                ending.enter_context(_disk_of_its_own(replica.data_dir, 64))
        for replica in fleet.replicas:
            ending.callback(replica.kill)
            fleet.start(replica)
        yield fleet
