"""``qd logs``: a container's log, through any replica, from the node that runs it."""

from __future__ import annotations

import sys

import click

from controlplane.cli.common import coroutine, settings_of
from controlplane.cli.options import namespace_option
from controlplane.pb.quarterdeck.v1 import api_pb2

__all__ = ["logs"]


@click.command()
@click.argument("pod")
@namespace_option
@click.option("--container", "-c", default="", help="Container; default: the pod's only one.")
@click.option("--follow", "-f", is_flag=True, help="Go on printing as the log grows.")
@click.option("--tail", type=click.IntRange(0), help="Only the last lines.")
@click.option("--previous", "-p", is_flag=True, help="The log of the run before the last restart.")
@click.pass_context
@coroutine
async def logs(
    context: click.Context, pod: str, namespace: str, container: str, follow: bool, tail: int | None, previous: bool
) -> None:
    """Print the logs of POD (also written pod/NAME)."""
    request = api_pb2.LogsRequest(
        namespace=namespace,
        pod=pod.removeprefix("pod/").removeprefix("pods/"),
        container=container,
        follow=follow,
        previous=previous,
    )
    if tail is not None:
        request.tail_lines = tail
    client = settings_of(context).client()
    try:
        async for data in client.logs(request):
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
    finally:
        await client.close()
