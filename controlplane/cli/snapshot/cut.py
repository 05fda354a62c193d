"""``qd snapshot cut``: replicas save a snapshot in their own data directories now, and drop the log that it holds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Final

import click

from controlplane.base.errors import Code, ConfigError, StatusError
from controlplane.cli.common import EXIT_REFUSED, EXIT_UNREACHABLE, Settings, coroutine, fail, settings_of
from controlplane.cli.options import output_option
from controlplane.cli.tables import table
from controlplane.client import OperatorClient
from controlplane.pb.quarterdeck.v1 import operator_pb2

__all__ = ["cut"]

_TRIES: Final = 3
_AGAIN_S: Final = 0.5


@click.command()
@click.argument("replicas", nargs=-1, metavar="[REPLICA]...")
@output_option
@click.pass_context
@coroutine
async def cut(context: click.Context, replicas: Sequence[str], output: str) -> None:
    """Have replicas (by name; all of them by default) cut a Raft snapshot of their own now, and drop the log it holds.

    They do that by themselves every so many log entries (--snapshot-entries). Writes go on meanwhile. A member that is
    away, and lacks any of the log that is dropped, is sent the snapshot when it returns. For administrators. To have
    the state as a file: qd snapshot save.
    """
    settings = settings_of(context)
    by_name = await _by_name(settings)
    if unknown := [name for name in replicas if name not in by_name]:
        raise ConfigError(f"no replica {', '.join(unknown)}; there are: {', '.join(sorted(by_name))}")
    names = list(replicas) or sorted(by_name)
    answers = await asyncio.gather(*(_cut(settings, by_name[name]) for name in names))
    done = [answer for answer in answers if isinstance(answer, operator_pb2.CutSnapshotResponse)]
    rows = [[a.name, str(a.index), str(a.revision), str(a.size_bytes), str(a.log_first_index)] for a in done]
    if output == "json":
        keys = ("name", "index", "revision", "size_bytes", "log_first_index")
        click.echo(json.dumps([{key: getattr(answer, key) for key in keys} for answer in done], indent=2))
    elif rows:
        click.echo(table(["REPLICA", "ENTRY", "REVISION", "BYTES", "LOG BEGINS AT"], rows))
    failed = [(name, answer) for name, answer in zip(names, answers, strict=True) if isinstance(answer, StatusError)]
    if failed:
        silent = any(error.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED) for _, error in failed)
        said = "; ".join(f"{name}: {error.message}" for name, error in failed)
        fail(f"not cut: {said}", EXIT_UNREACHABLE if silent else EXIT_REFUSED)


async def _by_name(settings: Settings) -> dict[str, str]:
    """Every member's name and client endpoint, as the first replica that answers knows them."""
    failure: StatusError | None = None
    for endpoint in settings.resolve_endpoints():
        async with OperatorClient(endpoint, credentials=settings.credentials()) as client:
            try:
                return {m.name: m.client_endpoint for m in (await client.status()).members if m.client_endpoint}
            except StatusError as error:
                failure = error  # another may be up
    assert failure is not None
    raise failure


async def _cut(settings: Settings, endpoint: str) -> operator_pb2.CutSnapshotResponse | StatusError:
    async with OperatorClient(endpoint, credentials=settings.credentials()) as client:
        for left in reversed(range(_TRIES)):
            try:
                return await client.cut_snapshot()
            except StatusError as error:
                # It may have been cut all the same: one more takes nothing from anybody.
                if error.code != Code.UNAVAILABLE or not left:
                    return error
            await asyncio.sleep(_AGAIN_S)
    raise AssertionError("the last try returns")
