"""LocalCluster: the processes of one folder, started, found again, stopped, killed and restored.

Layout of the folder::

    .quarterdeck/
      cluster.json              the plan (spec.py)
      run/NAME.json             pid records (processes.py)
      logs/NAME.log             output of each process
      replicas/NAME/            a replica's data: log and snapshots
      etcd/NAME/                a member's data, where an etcd cluster is the store
      nodes/NAME/               an agent's state, and its pods' directories and logs
      snapshots/                where `qd snapshot save` puts files by default, if there is no archive
      archive/                  snapshots by the clock and the archived log of all replicas; outlives a restore
      pki/                      certificates, where TLS is on (pki.py); they outlive a restore
      relay/                    what the relay of the links is told and tells, where there is one (relay.py)

All methods are synchronous and quick, but for the waits that say so; waiting for the cluster to *serve* is the
caller's business (``cli``), since it asks over the network. Command lines are in ``programs`` and ``etcd``.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from controlplane.base import failpoints, identity
from controlplane.base.addresses import split_address
from controlplane.base.errors import ConfigError
from controlplane.local import damage, etcd, pods, ports, programs
from controlplane.local.clocks import Clocks
from controlplane.local.hosts import Hosts
from controlplane.local.hosts import missing as hosts_missing
from controlplane.local.processes import ProcessError, Processes
from controlplane.local.procfs import catches, stat_of
from controlplane.local.relay import RelayFiles
from controlplane.local.spec import EDGE, RELAY, ClusterSpec, NodeSpec, ReplicaSpec, StoreMemberSpec
from controlplane.transport.tls import Reloader, TlsFiles

if TYPE_CHECKING:
    from controlplane.local.pki import Pki

__all__ = ["FOLDER", "LocalCluster"]

#: The folder's name under the current directory.
FOLDER = ".quarterdeck"
_AGENT_STOP_TIMEOUT_S = 15.0
_Spec = TypeVar("_Spec", ReplicaSpec, NodeSpec, StoreMemberSpec)


class LocalCluster:
    """The cluster of one folder. ``python`` runs replicas and agents: this program's own interpreter."""

    python = sys.executable
    #: Whether its processes are on other machines, and their numbers mean nothing here.
    remote = False

    def __init__(self, root: Path, spec: ClusterSpec) -> None:
        self.root = root
        self.spec = spec
        self.processes = Processes(root / "run", root / "logs")
        #: What to put before a process's command: chaos starts each on a host of its own.
        self.enter: Callable[[str], list[str]] = lambda _name: []
        if spec.hosts == "netns":
            self.enter = lambda name: [] if name == EDGE else self.hosts.enter(name)
        #: Replicas and agents that run the code of another source tree, by name: a rolling upgrade's old version. Read
        #: at each start; whose name is not here runs this program's own code. Not kept in the folder.
        self.sources: dict[str, Path] = {}

    @classmethod
    def create(cls, root: Path, spec: ClusterSpec) -> LocalCluster:
        """Lay out a new folder for that plan.

        Raises:
            ConfigError: the folder cannot be written.
        """
        try:
            for part in ("run", "logs", "replicas", "nodes", "snapshots", *(("etcd",) if spec.store else ())):
                (root / part).mkdir(parents=True, exist_ok=True)
            spec.save(root / "cluster.json")
            if spec.tls and not (pki := _pki(root)).exists:
                pki.create(pki.folder)
        except OSError as error:
            raise ConfigError(f"cannot write {root}: {error.strerror}; run from a folder you may write to") from error
        return cls(root, spec)

    @classmethod
    def open(cls, root: Path) -> LocalCluster:
        """The cluster that is there. Raises ConfigError if there is none."""
        return cls(root, ClusterSpec.load(root / "cluster.json"))

    @staticmethod
    def exists(root: Path) -> bool:
        """Whether the folder holds a cluster, running or not."""
        return (root / "cluster.json").is_file()

    # -- certificates --------------------------------------------------------------------------------------------

    @property
    def pki(self) -> Pki:
        """The cluster's certificates, where TLS is on."""
        return _pki(self.root)

    def credentials(self) -> Reloader | None:
        """The administrator's, to speak with replicas; None where TLS is off."""
        return Reloader(self.pki.admin) if self.spec.tls else None

    def certificate(self, who: identity.Identity, *addresses: str) -> TlsFiles | None:
        """The files of a process that listens there, made or renewed if need be; None where TLS is off."""
        if not self.spec.tls:
            return None
        hosts = dict.fromkeys(split_address(address)[0] for address in addresses)
        return self.pki.ensure(who, [who.name, "localhost", *hosts]).absolute()

    # -- hosts and links -------------------------------------------------------------------------------------------

    @property
    def hosts(self) -> Hosts:
        """The processes' hosts, where they have some of their own."""
        spec = self.spec
        addresses = {m.name: m.client for m in spec.store} | {r.name: r.client for r in spec.replicas}
        addresses |= {n.name: n.listen for n in spec.nodes}
        numbers = {name: int(split_address(address)[0].rpartition(".")[2]) for name, address in addresses.items()}
        return Hosts(numbers, network=spec.network, owner=str(self.root.resolve()), pods=spec.cluster_cidr)

    @property
    def relay(self) -> RelayFiles:
        """What the relay is told and tells, where there is one."""
        return RelayFiles(self.root / "relay")

    def prepare(self) -> None:
        """Make the hosts that are not there; write what the relay relays. Safe to repeat.

        Raises:
            ConfigError: this machine cannot, or another cluster has this one's network.
        """
        if self.spec.hosts == "netns":
            if (why := hosts_missing()) is not None:
                raise ConfigError(f"HOSTS=netns: {why}; HOSTS=links wants neither root nor programs")
            self.hosts.ensure()
        elif self.spec.hosts == "links":
            self.relay.write_links(self.spec.relayed)

    # -- names ---------------------------------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        """Every process name: what the others need, the store's members, if it has its own, replicas, nodes."""
        spec = self.spec
        members = [*spec.fixtures, *(member.name for member in spec.store)]
        return members + [replica.name for replica in spec.replicas] + [node.name for node in spec.nodes]

    def running(self) -> list[str]:
        """Names of the processes that run."""
        return [name for name in self.names if self.processes.pid(name) is not None]

    def replica(self, name: str) -> ReplicaSpec:
        """A replica by name. Raises ConfigError naming those there are."""
        return self._named(name, self.spec.replicas)

    def node(self, name: str) -> NodeSpec:
        """A node by name. Raises ConfigError naming those there are."""
        return self._named(name, self.spec.nodes)

    def _named(self, name: str, among: Iterable[_Spec]) -> _Spec:
        for item in among:
            if item.name == name:
                return item
        raise ConfigError(f"no process {name!r} in this cluster; there are: {', '.join(self.names)}")

    def replica_dir(self, name: str) -> Path:
        """A replica's data directory."""
        return self.root / "replicas" / name

    @property
    def archive_location(self) -> str:
        """Where the replicas back up to, a path or URL; empty: nowhere."""
        archive = self.spec.archive
        return archive if not archive or "://" in archive else str((self.root / archive).resolve())

    def store_dir(self, name: str) -> Path:
        """The data directory of a member of the store."""
        return self.root / "etcd" / name

    def node_dir(self, name: str) -> Path:
        """An agent's state directory."""
        return self.root / "nodes" / name

    # -- starting ------------------------------------------------------------------------------------------------

    def check_ports(self) -> None:
        """Refuse early, by name, when somebody else holds a port.

        Raises:
            ConfigError: naming each port in use and how to choose others.
        """
        wanted = [
            address
            for r in self.spec.replicas
            if self.processes.pid(r.name) is None
            for address in (r.client, r.metrics, r.peer)
        ]
        wanted += [a for m in self.spec.store if self.processes.pid(m.name) is None for a in (m.client, m.peer)]
        wanted += [
            address for n in self.spec.nodes if self.processes.pid(n.name) is None for address in (n.listen, n.metrics)
        ]
        if self.spec.hosts == "netns":
            wanted = []  # on hosts of their own nobody else is
        if RELAY in self.spec.fixtures and self.processes.pid(RELAY) is None:
            wanted += [listen for listen, _ in self.spec.relayed.values()]
        busy = [address for address in wanted if not ports.is_free(address)]
        if busy:
            raise ConfigError(
                f"in use by another program: {', '.join(busy)}. Stop it, or choose other ports: "
                f"make cluster PORT_BASE={self.spec.port_base + 1000}"
            )

    def start_held(self, name: str) -> None:
        """Start a replica that does not touch its data before :meth:`release`: its program loads meanwhile. It ends
        when this one does without having released it."""
        self.prepare()
        argv = [*self.argv(self.replica(name).name), "--await-start"]
        self.processes.start(name, [*self.enter(name), *argv], env=self._environment(name), cwd=self.root, held=True)

    def release(self, name: str) -> None:
        """Let such a replica begin."""
        self.processes.release(name)

    def start(self, name: str) -> int:
        """Start a member of the store, a replica or an agent; return its pid. A running one is left as it is.

        Raises:
            ConfigError: there is no such process, or no etcd on this machine.
        """
        self.prepare()
        argv = [*self.enter(name), *self.argv(name)]
        return self.processes.start(name, argv, env=self._environment(name), cwd=self.root)

    def argv(self, name: str) -> list[str]:
        """The command line of a process, its certificate made or renewed if need be.

        Raises:
            ConfigError: there is no such process, or no etcd on this machine.
        """
        spec = self.spec
        if name == RELAY:
            return programs.relay_argv(self.python, self.relay.folder.resolve())
        if name == EDGE:
            return programs.edge_argv(self.python, spec, tls=self.certificate(identity.node(EDGE), "127.0.0.1:0"))
        if any(member.name == name for member in spec.store):
            member = self._named(name, spec.store)
            tls = self.certificate(identity.member(name), member.client, member.peer)
            return etcd.member_argv(member, spec, self.store_dir(name).resolve(), tls)
        if any(node.name == name for node in spec.nodes):
            node = self.node(name)
            tls = self.certificate(identity.node(name), node.listen)
            return programs.node_argv(self.python, node, spec, state_dir=self.node_dir(name).resolve(), tls=tls)
        me = self.replica(name)
        tls = self.certificate(identity.member(name), me.client, me.peer, me.metrics)
        return programs.replica_argv(
            self.python, me, spec, data_dir=self.replica_dir(name).resolve(), archive=self.archive_location, tls=tls
        )

    def _environment(self, name: str) -> dict[str, str]:
        environment = programs.environment()
        if name in self.sources:
            # Before site-packages, where this program's own tree is found.
            environment["PYTHONPATH"] = str(self.sources[name].resolve())
        if any(replica.name == name for replica in self.spec.replicas):
            environment[failpoints.FILE_VARIABLE] = str(self._failpoints(name).resolve())
        return environment | dict(self.clocks.environment(name))

    def state(self, name: str) -> str:
        """proc(5)'s letter of a process (T: stopped); ``gone``: it does not run."""
        pid = self.processes.pid(name)
        stat = stat_of(pid) if pid is not None else None
        return stat.state if stat is not None else "gone"

    def cut_tail(self, name: str, keep: float) -> int:
        """Of the last frame of a stopped replica's log only a share stays, 0 to less than 1; returns the bytes lost.
        Raises ConfigError: there is no log, or it is damaged."""
        tail = damage.last_frame(self.replica_dir(self.replica(name).name))
        return 0 if tail is None else tail.cut(max(1, int((tail.end - tail.start) * keep)) if keep else 0)

    # -- what tests and chaos do to a process that runs --------------------------------------------------------------

    @property
    def clocks(self) -> Clocks:
        """The clocks of processes that have their own."""
        return Clocks(self.root / "clocks")

    def arm(self, name: str, spec: str) -> bool:
        """Arm the failpoints of a replica, now and at its next start; empty: none. False: it does not run, or does not
        listen; then the next start it is.

        Raises:
            ConfigError: no such replica.
        """
        path = self._failpoints(self.replica(name).name)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(spec)
        os.replace(temporary, path)
        pid = self.processes.pid(name)
        # The signal ends who does not catch it.
        return pid is not None and catches(pid, signal.SIGUSR2) and self.processes.signal(name, signal.SIGUSR2)

    def _failpoints(self, name: str) -> Path:
        return self.root / "run" / f"{name}.failpoints"

    def check_alive(self, names: Sequence[str]) -> None:
        """Raise ProcessError with the last log lines of the first of these processes that does not run."""
        for name in names:
            if self.processes.pid(name) is None:
                tail = self.processes.log_tail(name)
                raise ProcessError(f"{name} ended; the end of {self.processes.log_path(name)}:\n{tail}")

    # -- stopping ------------------------------------------------------------------------------------------------

    def stop(self, name: str) -> bool:
        """Stop one process in good order; True if it had to be killed after all."""
        self._check_name(name)
        return bool(self.processes.stop([name], timeout_s=_AGENT_STOP_TIMEOUT_S))

    def kill(self, name: str, signum: signal.Signals = signal.SIGKILL) -> bool:
        """Send a signal, without warning by default; False if it does not run. An agent's pods run on."""
        self._check_name(name)
        sent = self.processes.signal(name, signum)
        if sent and signum == signal.SIGKILL:
            self.processes.wait_gone(name)
        return sent

    def kill_node(self, name: str) -> int:
        """What a dead machine is: kill -9 of the agent and of every process of its pods. Returns how many pods."""
        directory = self.node_dir(self.node(name).name)
        # A machine dies all at once: look first, then signal without a pause between.
        found = pods.running(directory)
        self.processes.signal(name, signal.SIGKILL)
        pods.kill(found)
        self.processes.wait_gone(name)
        # What the agent started between the look and its death.
        late = pods.running(directory)
        pods.kill(late)
        return len(found.keys() | late.keys())

    def down(self) -> list[str]:
        """Stop everything: agents with their pods, replicas, a store apart. Returns what had to be killed."""
        nodes = [node.name for node in self.spec.nodes]
        replicas = [replica.name for replica in self.spec.replicas]
        killed = self.processes.stop(nodes, timeout_s=_AGENT_STOP_TIMEOUT_S)
        for node in nodes:
            pods.kill_all(self.node_dir(node))
        killed += self.processes.stop(replicas)
        killed += self.processes.stop([member.name for member in self.spec.store])
        killed += self.processes.stop(self.spec.fixtures)
        if self.spec.hosts == "netns" and hosts_missing() is None and self.hosts.mine():
            self.hosts.remove()
        return killed

    def destroy(self) -> None:
        """Remove the folder. Only after :meth:`down`."""
        still = self.running()
        if still:
            raise ProcessError(f"still running: {', '.join(still)}; stop the cluster first")
        for place in sorted((self.root / "replicas").glob("*")):
            if os.path.ismount(place):  # a fault that nobody healed
                _unmount(place)
        shutil.rmtree(self.root, ignore_errors=False)

    def destroy_replica_data(self, name: str) -> None:
        """Lose a replica's disk. Refused while it runs."""
        if self.processes.pid(self.replica(name).name) is not None:
            raise ProcessError(f"{name} runs; kill it before its disk is destroyed")
        shutil.rmtree(self.replica_dir(name), ignore_errors=True)

    def destroy_store_data(self, name: str) -> None:
        """Lose the disk of a member of the store. Refused while it runs."""
        if self.processes.pid(self._named(name, self.spec.store).name) is not None:
            raise ProcessError(f"{name} runs; kill it before its disk is destroyed")
        shutil.rmtree(self.store_dir(name), ignore_errors=True)

    def renew_token(self) -> None:
        """Become another cluster (after a restore), with the same names and addresses. Refused while replicas run."""
        running = [r.name for r in self.spec.replicas if self.processes.pid(r.name) is not None]
        if running:
            raise ProcessError(f"still running: {', '.join(running)}; stop or kill the replicas first")
        self.become(self.spec.with_new_token())

    def become(self, spec: ClusterSpec) -> None:
        """Take this plan, on disk too."""
        self.spec = spec
        self.spec.save(self.root / "cluster.json")

    def _check_name(self, name: str) -> None:
        if name not in self.names:
            raise ConfigError(f"no process {name!r} in this cluster; there are: {', '.join(self.names)}")

    # -- growing and shrinking -------------------------------------------------------------------------------------

    def add_node(self) -> NodeSpec:
        """One more agent, started."""
        self.spec, node = self.spec.with_node()
        self.spec.save(self.root / "cluster.json")
        self.start(node.name)
        return node

    def add_replica(self) -> ReplicaSpec:
        """One more replica in the plan. It is the caller's to make it a member, and then to start it."""
        self.spec, replica = self.spec.with_replica()
        self.spec.save(self.root / "cluster.json")
        return replica

    def remove_replica(self, name: str) -> None:
        """Kill a replica that is no member any more, lose its data, and forget it."""
        self.kill(self.replica(name).name)
        self.destroy_replica_data(name)
        self.spec = self.spec.without_replica(name)
        self.spec.save(self.root / "cluster.json")

    def prepare_rejoin(self, name: str) -> None:
        """Kill a replica that is no member any more and lose its data: its next start is that of a new member, which
        is the caller's to add before."""
        self.kill(self.replica(name).name)
        self.destroy_replica_data(name)
        joined = (*(other for other in self.spec.joined if other != name), name)
        self.spec = replace(self.spec, joined=joined)
        self.spec.save(self.root / "cluster.json")

    def remove_node(self, name: str) -> None:
        """Stop an agent and its pods, and forget it. Its Node object is the caller's to delete."""
        self.node(name)
        self.stop(name)
        pods.kill_all(self.node_dir(name))
        self.spec = self.spec.without_node(name)
        self.spec.save(self.root / "cluster.json")
        shutil.rmtree(self.node_dir(name), ignore_errors=True)


def _pki(root: Path) -> Pki:
    from controlplane.local import pki  # cryptography: a cluster that speaks plainly is started without it

    return pki.Pki(root / pki.FOLDER)


def _unmount(directory: Path) -> None:
    done = subprocess.run(["umount", str(directory)], capture_output=True, text=True, check=False)  # noqa: S607
    if done.returncode != 0:
        raise ProcessError(f"{directory} is mounted and cannot be unmounted: {done.stderr.strip()}")
