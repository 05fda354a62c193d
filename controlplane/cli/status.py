"""``qd status``: replicas with their roles, nodes, pods by phase; every replica is asked, so that a dead one shows."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import click
import yaml
from rich.console import Console

from controlplane.base.errors import ConfigError, StatusError
from controlplane.cli.common import EXIT_REFUSED, Settings, coroutine, settings_of
from controlplane.cli.printers import node_status
from controlplane.cli.tables import table
from controlplane.client import GrpcClient, OperatorClient
from controlplane.client.operator_client import leader_of
from controlplane.client.tls import Credentials
from controlplane.local import etcdctl
from controlplane.local.cluster import LocalCluster
from controlplane.pb.k8s.core_v1_pb2 import Node, Pod
from controlplane.pb.quarterdeck.v1 import operator_pb2

__all__ = ["ClusterStatus", "NodeRow", "ReplicaRow", "gather", "render", "status"]

_ASK_TIMEOUT_MS = 1_500


@dataclass(frozen=True, slots=True)
class ReplicaRow:
    """One replica; what could not be asked is empty or zero and ``healthy`` is False."""

    name: str
    client_endpoint: str
    metrics_endpoint: str
    pid: int | None
    role: str
    healthy: bool
    term: int
    revision: int
    applied_index: int
    state_hash: str
    #: Cut off the end of its log when it started.
    torn_bytes: int = 0


@dataclass(frozen=True, slots=True)
class NodeRow:
    """One node."""

    name: str
    ready: bool
    status: str
    pid: int | None
    pods: int


@dataclass(frozen=True, slots=True)
class StoreRow:
    """One member of the external etcd that holds the state, as a replica last saw it."""

    endpoint: str
    reachable: bool
    leader: bool
    version: str
    term: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """The whole cluster at a glance. ``leader`` is None when no majority says who leads. ``store`` is empty
    where the replicas hold the state themselves."""

    leader: str | None
    term: int
    replicas: list[ReplicaRow]
    nodes: list[NodeRow]
    store: list[StoreRow]
    pods: dict[str, int]
    pods_ready: int


async def gather(settings: Settings) -> ClusterStatus:
    """Ask every replica for its status and one of them for nodes and pods.

    Raises:
        ConfigError: no cluster is named and none is found here.
    """
    endpoints, credentials = settings.resolve_endpoints(), settings.credentials()
    answers = await _ask_all(endpoints, credentials)
    # Replicas that were not named, but that those named know of.
    met = {answer.name for answer in answers.values() if answer}
    members = {m.client_endpoint: m for answer in answers.values() if answer for m in answer.members}
    more = [e for e, member in members.items() if e and e not in answers and member.name not in met]
    answers |= await _ask_all(more, credentials)
    local = _local(settings, endpoints)
    replicas = sorted((_row(e, a, members.get(e), local) for e, a in answers.items()), key=lambda r: _natural(r.name))
    heard = [answer for answer in answers.values() if answer]
    leader, term = leader_of(heard, len(replicas))
    reachable = [endpoint for endpoint, answer in answers.items() if answer]
    nodes, pods, ready = await _workload(reachable, local, credentials) if reachable else ([], {}, 0)
    store = next((_store(answer) for answer in heard if answer.store_members), [])
    return ClusterStatus(leader, term, replicas, nodes, store, pods, ready)


def _store(answer: operator_pb2.StatusResponse) -> list[StoreRow]:
    return [
        StoreRow(m.endpoint, m.reachable, m.leader, m.version, m.raft_term, m.size_bytes) for m in answer.store_members
    ]


async def _ask_all(
    endpoints: Sequence[str], credentials: Credentials | None
) -> dict[str, operator_pb2.StatusResponse | None]:
    answers = await asyncio.gather(*(_ask(endpoint, credentials) for endpoint in endpoints))
    return dict(zip(endpoints, answers, strict=True))


def _local(settings: Settings, endpoints: list[str]) -> LocalCluster | None:
    try:
        cluster = settings.local()
    except ConfigError:
        return None
    return cluster if set(endpoints) <= set(cluster.spec.endpoints) else None


async def _ask(endpoint: str, credentials: Credentials | None) -> operator_pb2.StatusResponse | None:
    client = OperatorClient(endpoint, timeout_ms=_ASK_TIMEOUT_MS, credentials=credentials)
    try:
        return await client.status()
    except StatusError:
        return None
    finally:
        await client.close()


def _row(
    endpoint: str,
    answer: operator_pb2.StatusResponse | None,
    member: operator_pb2.MemberStatus | None,
    local: LocalCluster | None,
) -> ReplicaRow:
    spec = next((r for r in local.spec.replicas if r.client == endpoint), None) if local else None
    if answer is not None:
        metrics = next((m.metrics_endpoint for m in answer.members if m.name == answer.name), "")
        return ReplicaRow(
            answer.name, endpoint, metrics, answer.pid, answer.role, answer.ready,
            answer.term, answer.revision, answer.applied_index, answer.state_hash, answer.torn_bytes,
        )  # fmt: skip
    name = spec.name if spec else member.name if member else endpoint
    metrics = spec.metrics if spec else member.metrics_endpoint if member else ""
    pid = local.processes.pid(spec.name) if local and spec else None
    return ReplicaRow(name, endpoint, metrics, pid, "unreachable" if pid else "down", False, 0, 0, 0, "")


async def _workload(
    endpoints: list[str], local: LocalCluster | None, credentials: Credentials | None
) -> tuple[list[NodeRow], dict[str, int], int]:
    client = GrpcClient(endpoints, credentials=credentials)
    try:
        nodes = await client.list(Node, serializable=True)
        pods = await client.list(Pod, serializable=True)
    except StatusError:
        return [], {}, 0
    finally:
        await client.close()
    on_node = Counter(pod.spec.nodeName for pod in pods.items)
    rows = [
        NodeRow(
            node.metadata.name,
            _condition(node, "Ready") == "True" and _condition(node, "Suspect") != "True",
            node_status(node),
            local.processes.pid(node.metadata.name) if local else None,
            on_node[node.metadata.name],
        )
        for node in sorted(nodes.items, key=lambda n: _natural(n.metadata.name))
    ]
    phases = Counter(pod.status.phase or "Pending" for pod in pods.items)
    ready = sum(1 for pod in pods.items for c in pod.status.conditions if c.type == "Ready" and c.status == "True")
    return rows, dict(sorted(phases.items())), ready


def _natural(name: str) -> tuple[str, int]:
    head = name.rstrip("0123456789")
    return head, int(name[len(head) :] or 0)


def _condition(node: Node, kind: str) -> str:
    return next((c.status for c in node.status.conditions if c.type == kind), "Unknown")


def render(found: ClusterStatus, console: Console) -> None:
    """Print the tables."""
    _print(
        console,
        table(
            ["REPLICA", "ROLE", "HEALTHY", "TERM", "REVISION", "APPLIED", "GRPC", "METRICS", "PID"],
            [
                [
                    ("* " if r.name == found.leader else "  ") + r.name,
                    r.role,
                    "yes" if r.healthy else "no",
                    str(r.term),
                    str(r.revision),
                    str(r.applied_index),
                    r.client_endpoint,
                    r.metrics_endpoint,
                    str(r.pid or "-"),
                ]
                for r in found.replicas
            ],
        ),
    )
    for r in found.replicas:
        if r.torn_bytes:
            _print(
                console,
                f"{r.name}: the end of its log was torn ({r.torn_bytes} bytes) and was cut when it started; "
                "nothing acknowledged was in it",
            )
    if found.store:
        console.print()
        members = [
            [
                ("* " if m.leader else "  ") + m.endpoint,
                "yes" if m.reachable else "no",
                m.version or "-",
                str(m.term or "-"),
                str(m.size_bytes),
            ]
            for m in found.store
        ]
        _print(console, table(["ETCD MEMBER", "ANSWERS", "VERSION", "TERM", "BYTES"], members))
    console.print()
    rows = [[n.name, n.status, str(n.pods), str(n.pid or "-")] for n in found.nodes]
    _print(console, table(["NODE", "STATUS", "PODS", "PID"], rows))
    console.print()
    phases = ", ".join(f"{count} {phase}" for phase, count in found.pods.items()) or "none"
    _print(console, f"pods: {phases}; {found.pods_ready} ready")


def _print(console: Console, text: str) -> None:
    console.print(text, markup=False, emoji=False)  # an IPv6 address looks like markup


@click.command()
@click.option("--output", "-o", type=click.Choice(["table", "json", "yaml"]), default="table", show_default=True)
@click.pass_context
@coroutine
async def status(context: click.Context, output: str) -> None:
    """Show replicas (leader marked with *), nodes and pods. Exit code 1 when no leader is known."""
    found = await gather(settings_of(context))
    if output == "json":
        click.echo(json.dumps(asdict(found), indent=2))
    elif output == "yaml":
        click.echo(yaml.safe_dump(asdict(found), sort_keys=False).rstrip())
    else:
        console = Console(highlight=False, soft_wrap=True)
        render(found, console)
        settings = settings_of(context)
        cluster = _local(settings, settings.resolve_endpoints())
        if cluster is not None:
            _print(console, f"etcdctl: {etcdctl.line(cluster)}")
    if found.leader is None:
        context.exit(EXIT_REFUSED)
