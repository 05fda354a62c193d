"""``qd logs``: a container's log, through any replica, from the node that runs it."""

from __future__ import annotations

import sys

import click

from controlplane.base.errors import ConfigError
from controlplane.cli.common import Client, coroutine, err, settings_of
from controlplane.cli.get import list_all
from controlplane.cli.kinds import kind_of, targets
from controlplane.cli.options import namespace_option
from controlplane.client import UnavailableError
from controlplane.client.kinds import info_of
from controlplane.pb.k8s.core_v1_pb2 import Pod
from controlplane.pb.quarterdeck.v1 import api_pb2

__all__ = ["logs"]

#: A stream is asked of one replica at a time; this many may be dead before it is given up.
_ATTEMPTS = 9


@click.command()
@click.argument("what", metavar="POD | deployment/NAME | replicaset/NAME")
@namespace_option
@click.option("--container", "-c", default="", help="Container; default: the pod's only one.")
@click.option("--follow", "-f", is_flag=True, help="Go on printing as the log grows.")
@click.option("--tail", type=click.IntRange(-1), default=-1, help="Only the last lines; -1: all.")
@click.option("--previous", "-p", is_flag=True, help="The log of the run before the last restart.")
@click.option("--timestamps", is_flag=True, help="Begin each line with its time.")
@click.pass_context
@coroutine
async def logs(
    context: click.Context,
    what: str,
    namespace: str,
    container: str,
    follow: bool,
    tail: int,
    previous: bool,
    timestamps: bool,
) -> None:
    """Print the logs of a pod, or of one of the pods of a Deployment or ReplicaSet."""
    client = settings_of(context).client()
    try:
        request = api_pb2.LogsRequest(
            namespace=namespace,
            pod=await _pod(client, what, namespace),
            container=container,
            follow=follow,
            previous=previous,
            timestamps=timestamps,
        )
        if tail >= 0:
            request.tail_lines = tail
        await _print(client, request)
    finally:
        await client.close()


async def _pod(client: Client, what: str, namespace: str) -> str:
    """The pod that is meant: itself, or the first (by name) that the Deployment or ReplicaSet selects."""
    if "/" not in what:
        return what
    info, name = targets([what])[0]
    if info is kind_of("pods"):
        return name
    if info not in {kind_of("deployments"), kind_of("replicasets")}:
        raise ConfigError(f"{what}: {info.resource} have no logs; name a pod, a deployment or a replicaset")
    owner = await client.get(info.message, name, namespace=namespace)
    labels = ",".join(f"{key}={value}" for key, value in sorted(owner.spec.selector.matchLabels.items()))
    pods, _ = await list_all(client, info_of(Pod), namespace, labels)
    if not pods:
        raise ConfigError(f"{what} has no pods")
    first: str = min(pod.metadata.name for pod in pods)
    if len(pods) > 1:
        err.print(f"Found {len(pods)} pods, using pod/{first}")
    return first


async def _print(client: Client, request: api_pb2.LogsRequest) -> None:
    for attempt in range(1, _ATTEMPTS + 1):
        printed = False
        try:
            async for data in client.logs(request):
                printed = True
                sys.stdout.buffer.write(data)
                sys.stdout.buffer.flush()
            return
        except UnavailableError:
            # Before the first line another replica can begin anew; after it, lines would come twice.
            if printed or attempt == _ATTEMPTS:
                raise
