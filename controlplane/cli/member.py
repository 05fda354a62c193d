"""``qd member`` and ``qd leader``: the replicas of the cluster, adding and removing them, and moving the leader."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import urlsplit

import click

from controlplane.base.addresses import split_address
from controlplane.base.clock import SystemClock
from controlplane.base.errors import ConfigError
from controlplane.cli.common import Settings, coroutine, err, fail, settings_of
from controlplane.cli.options import Seconds, output_option
from controlplane.cli.tables import table
from controlplane.client.members_client import MembersClient
from controlplane.pb.etcd import rpc_pb2

__all__ = ["MemberRow", "leader", "member"]


@dataclass(frozen=True, slots=True)
class MemberRow:
    """One member. ``status``: unstarted until a replica has started under it; ``role``: leader, follower, learner."""

    id: str
    name: str
    status: str
    role: str
    peer: str
    client: str


def _row(found: rpc_pb2.Member, leader_id: int) -> MemberRow:
    role = "learner" if found.isLearner else "leader" if leader_id == found.ID else "follower"
    started = bool(found.clientURLs)
    return MemberRow(
        f"{found.ID:x}", found.name, "started" if started else "unstarted", role,
        _address(found.peerURLs), _address(found.clientURLs),
    )  # fmt: skip


def _address(urls: Any) -> str:
    return urlsplit(urls[0]).netloc if urls else ""


def _client(settings: Settings) -> MembersClient:
    return MembersClient(settings.resolve_endpoints(), credentials=settings.credentials())


async def _rows(client: MembersClient) -> list[MemberRow]:
    leader_id = await client.leader()
    return sorted((_row(found, leader_id) for found in await client.members()), key=lambda row: (row.name, row.id))


def _show(rows: list[MemberRow], output: str) -> None:
    if output == "json":
        click.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    cells = [[row.name or "-", row.id, row.status, row.role, row.peer, row.client or "-"] for row in rows]
    click.echo(table(["NAME", "ID", "STATUS", "ROLE", "PEER", "CLIENT"], cells))


async def _find(client: MembersClient, which: str) -> rpc_pb2.Member:
    members = await client.members()
    found = [each for each in members if which in (each.name, f"{each.ID:x}")]
    if not found:
        known = ", ".join(sorted(each.name or f"{each.ID:x}" for each in members))
        fail(f"no member {which!r}; there are: {known}")
    return found[0]


@click.group()
def member() -> None:
    """List, add, remove and promote replicas while the cluster runs."""


@member.command("list")
@output_option
@click.pass_context
@coroutine
async def list_members(context: click.Context, output: str) -> None:
    """List the members, as a quorum knows them."""
    async with _client(settings_of(context)) as client:
        _show(await _rows(client), output)


@member.command()
@click.argument("name")
@click.option("--peer", required=True, metavar="HOST:PORT", help="Where the other replicas reach it.")
@click.option("--client", "client_address", metavar="HOST:PORT", help="Where clients reach it; shown in the command.")
@click.option("--metrics", metavar="HOST:PORT", help="Its HTTP port; shown in the command.")
@click.option("--voter", is_flag=True, help="Vote at once, instead of catching up as a learner first.")
@click.option(
    "--wait",
    "wait_s",
    type=Seconds(),
    help="Wait so long (120, 2m) until its replica has been started and has caught up, and promote it.",
)
@output_option
@click.pass_context
@coroutine
async def add(
    context: click.Context,
    name: str,
    peer: str,
    client_address: str | None,
    metrics: str | None,
    voter: bool,
    wait_s: float | None,
    output: str,
) -> None:
    """Add a member, and print the command that starts its replica.

    It begins as a learner: it is sent everything and does not count for a quorum. Once it has caught up, `qd member
    promote NAME` makes it a voter; with --wait this command does that by itself.
    """
    split_address(peer)
    if voter and wait_s is not None:
        raise ConfigError("--wait waits to promote a learner; with --voter there is none")
    settings = settings_of(context)
    async with _client(settings) as client:
        if any(each.name == name for each in await client.members()):
            fail(f"there is a member {name!r} already; remove it first, or choose another name")
        added = await client.add(peer, learner=not voter)
        running = settings.resolve_endpoints()
        command = _start_command(name, peer, client_address, metrics, running, tls=settings.credentials() is not None)
        if output == "json":
            click.echo(json.dumps({**asdict(_row(added, 0)), "name": name, "start": command}, indent=2))
        else:
            err.print(f"member {name} added with id {added.ID:x}; start its replica with an empty data directory:")
            click.echo(command)
        if wait_s is not None:
            await _promote(client, added.ID, name, wait_s)
        elif not voter:
            err.print(f"when it has caught up: qd member promote {name}")


def _start_command(
    name: str, peer: str, client: str | None, metrics: str | None, running: list[str], *, tls: bool
) -> str:
    addresses = f"{peer}@{client or 'CLIENT_HOST:PORT'}@{metrics or 'METRICS_HOST:PORT'}"
    return (
        f"python -m controlplane --name {name} --data-dir {name} --initial-cluster {name}={addresses} "
        f"--initial-cluster-state existing --join {','.join(running)}"
        + (f" --tls-ca ca.crt --tls-cert {name}.crt --tls-key {name}.key" if tls else "")
    )


@member.command()
@click.argument("which", metavar="NAME|ID")
@output_option
@click.pass_context
@coroutine
async def remove(context: click.Context, which: str, output: str) -> None:
    """Remove a member for good; its replica learns of it and stops. It cannot come back with its old data."""
    async with _client(settings_of(context)) as client:
        gone = await _find(client, which)
        await client.remove(gone.ID)
        err.print(f"member {gone.name or which} ({gone.ID:x}) removed")
        if output == "json":
            click.echo(json.dumps(asdict(_row(gone, 0)), indent=2))


@member.command()
@click.argument("which", metavar="NAME|ID")
@click.option(
    "--wait",
    "wait_s",
    type=Seconds(),
    default=0,
    help="Ask again for so long (120, 2m) while it has not caught up. By default it is asked once.",
)
@output_option
@click.pass_context
@coroutine
async def promote(context: click.Context, which: str, wait_s: float, output: str) -> None:
    """Make a learner that has caught up a voter."""
    async with _client(settings_of(context)) as client:
        found = await _find(client, which)
        await _promote(client, found.ID, found.name or which, wait_s)
        _show(await _rows(client), output)


async def _promote(client: MembersClient, member_id: int, name: str, wait_s: float) -> None:
    if wait_s > 0:
        err.print(f"waiting for {name} to catch up, for {wait_s:g} s at most")
    await client.promote_within(member_id, wait_s, SystemClock())
    err.print(f"member {name} votes")


@click.group()
def leader() -> None:
    """Move the leader."""


@leader.command()
@click.argument("which", metavar="[NAME|ID]", required=False)
@output_option
@click.pass_context
@coroutine
async def move(context: click.Context, which: str | None, output: str) -> None:
    """Hand leadership to another replica while writes go on; without a name the leader picks the furthest one."""
    async with _client(settings_of(context)) as client:
        before = await client.leader()
        target = 0
        if which is not None:
            chosen = await _find(client, which)
            if chosen.isLearner:
                raise ConfigError(f"member {which} is a learner, which cannot lead; promote it first")
            target = chosen.ID
            if target == before:
                fail(f"member {chosen.name} leads already")
        await client.move_leader(target)
        _show(await _rows(client), output)
