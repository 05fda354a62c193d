"""``qd rollout``: following a Deployment's rollout, its history, undoing, pausing, restarting it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import click

from controlplane.base.errors import ConfigError, QuarterdeckError
from controlplane.cli.common import Client, coroutine, fail, settings_of
from controlplane.cli.kinds import KindType, kind_of, label_of, targets
from controlplane.cli.options import Seconds, namespace_option
from controlplane.cli.tables import table
from controlplane.client.codec import to_dict
from controlplane.pb.k8s.apps_v1_pb2 import Deployment, ReplicaSet

__all__ = ["RolloutError", "rollout", "rollout_state"]

_REVISION = "deployment.kubernetes.io/revision"
_HASH = "pod-template-hash"
_POLL_S = 0.1


class RolloutError(QuarterdeckError):
    """A rollout failed."""


_WHAT = click.argument(
    "what", nargs=-1, required=True, type=KindType(), metavar="deployment/NAME | deployment NAME | NAME"
)


def _name(what: Sequence[str]) -> str:
    """``deployment/web`` or ``deployment web`` (or a short form of the kind), or just ``web`` -> ``web``."""
    words = what if len(what) > 1 or "/" in what[0] else ("deployment", what[0])
    found = targets(words)
    if len(found) > 1:
        raise ConfigError("one deployment at a time")
    info, name = found[0]
    if info is not kind_of("deployment"):
        raise ConfigError(f"{' '.join(what)}: only deployments have rollouts")
    return name


@click.group()
def rollout() -> None:
    """Follow, undo, pause and restart rollouts of a Deployment."""


def rollout_state(deployment: Deployment) -> tuple[str, bool]:
    """What to say of a rollout, and whether it is complete. The words are kubectl's.

    Raises:
        RolloutError: it will not complete by itself: its progress deadline has passed.
    """
    name, status, wanted = deployment.metadata.name, deployment.status, deployment.spec.replicas
    if status.observedGeneration < deployment.metadata.generation:
        return "Waiting for deployment spec update to be observed...", False
    for condition in status.conditions:
        if condition.type == "Progressing" and condition.reason == "ProgressDeadlineExceeded":
            raise RolloutError(f'deployment "{name}" exceeded its progress deadline')
    head = f'Waiting for deployment "{name}" rollout to finish: '
    if status.updatedReplicas < wanted:
        return f"{head}{status.updatedReplicas} out of {wanted} new replicas have been updated...", False
    if status.replicas > status.updatedReplicas:
        old = status.replicas - status.updatedReplicas
        return f"{head}{old} old replicas are pending termination...", False
    if status.availableReplicas < status.updatedReplicas:
        have = status.availableReplicas
        return f"{head}{have} of {status.updatedReplicas} updated replicas are available...", False
    return f'deployment "{name}" successfully rolled out', True


@rollout.command("status")
@_WHAT
@namespace_option
@click.option("--timeout", "timeout_s", type=Seconds(), default=300.0, show_default=True, help="0 looks once.")
@click.option(
    "--watch", "-w", type=bool, is_flag=False, flag_value=True, default=True, show_default=True,
    help="False looks once; exit code 0 then too.",
)  # fmt: skip
@click.pass_context
@coroutine
async def rollout_status(
    context: click.Context, what: Sequence[str], namespace: str, timeout_s: float, watch: bool
) -> None:
    """Follow a rollout until it is complete; exit code 1 if it is not."""
    name = _name(what)
    client = settings_of(context).client()
    deadline = time.monotonic() + timeout_s
    said = ""
    try:
        while True:
            text, complete = rollout_state(await client.get(Deployment, name, namespace=namespace))
            if text != said:
                click.echo(text)
                said = text
            if complete or not watch:
                return
            if time.monotonic() >= deadline:
                fail("the rollout is not complete" + (f" after {timeout_s:g} s" if timeout_s else ""))
            await asyncio.sleep(_POLL_S)
    finally:
        await client.close()


async def _history(client: Client, deployment: Deployment) -> list[tuple[int, ReplicaSet]]:
    """Its ReplicaSets by revision, the current one last."""
    namespace = deployment.metadata.namespace
    owned = [
        rs
        for rs in (await client.list(ReplicaSet, namespace=namespace)).items
        if any(ref.uid == deployment.metadata.uid for ref in rs.metadata.ownerReferences)
    ]
    numbered = [(int(rs.metadata.annotations.get(_REVISION, "0")), rs) for rs in owned]
    return sorted(numbered, key=lambda pair: pair[0])


@rollout.command()
@_WHAT
@namespace_option
@click.pass_context
@coroutine
async def history(context: click.Context, what: Sequence[str], namespace: str) -> None:
    """List the revisions that can be gone back to."""
    client = settings_of(context).client()
    try:
        rows = []
        deployment = await client.get(Deployment, _name(what), namespace=namespace)
        for revision, rs in await _history(client, deployment):
            cause = rs.metadata.annotations.get("kubernetes.io/change-cause", "<none>")
            rows.append([str(revision), rs.metadata.name, str(rs.spec.replicas), cause])
        click.echo(_label(deployment.metadata.name))
        click.echo(table(["REVISION", "REPLICASET", "PODS", "CHANGE-CAUSE"], rows))
    finally:
        await client.close()


@rollout.command()
@_WHAT
@namespace_option
@click.option("--to-revision", type=int, default=0, help="Default: the revision before the current one.")
@click.pass_context
@coroutine
async def undo(context: click.Context, what: Sequence[str], namespace: str, to_revision: int) -> None:
    """Go back to an earlier revision of the pod template."""
    name = _name(what)
    client = settings_of(context).client()
    try:
        deployment = await client.get(Deployment, name, namespace=namespace)
        if deployment.spec.paused:
            fail(f'deployment "{name}" is paused: resume it first with "qd rollout resume deployment/{name}"')
        revisions = await _history(client, deployment)
        if to_revision:
            chosen = next((rs for revision, rs in revisions if revision == to_revision), None)
            if chosen is None:
                there = ", ".join(str(revision) for revision, _ in revisions) or "none"
                fail(f"no revision {to_revision}; there are: {there}")
        elif len(revisions) < 2:
            fail(f'deployment "{name}" has no earlier revision')
        else:
            chosen = revisions[-2][1]
        template = _template_of(chosen)
        if template == _template_of(deployment):
            click.echo(f"{_label(name)} skipped rollback (current template already matches revision {to_revision})")
            return
        # A JSON patch replaces the template whole: a merge would keep what the newer one added.
        operation = [{"op": "replace", "path": "/spec/template", "value": template}]
        await client.patch(Deployment, name, operation, namespace=namespace, json_patch=True)
        click.echo(f"{_label(name)} rolled back")
    finally:
        await client.close()


def _template_of(owner: Deployment | ReplicaSet) -> dict[str, Any]:
    """The pod template as a Deployment has it: without the label that tells its ReplicaSets apart."""
    template: dict[str, Any] = to_dict(owner)["spec"]["template"]
    template.get("metadata", {}).get("labels", {}).pop(_HASH, None)
    return template


def _label(name: str) -> str:
    return label_of(kind_of("deployment"), name)


@rollout.command()
@_WHAT
@namespace_option
@click.pass_context
@coroutine
async def restart(context: click.Context, what: Sequence[str], namespace: str) -> None:
    """Replace every pod, by the Deployment's own rolling update."""
    name = _name(what)
    # To the microsecond: a second restart within the second is a change too.
    stamp = datetime.now(UTC).isoformat(timespec="microseconds")
    patch = {"spec": {"template": {"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": stamp}}}}}
    client = settings_of(context).client()
    try:
        if (await client.get(Deployment, name, namespace=namespace)).spec.paused:
            fail(f'deployment "{name}" is paused: resume it first with "qd rollout resume deployment/{name}"')
        await client.patch(Deployment, name, patch, namespace=namespace)
        click.echo(f"{_label(name)} restarted")
    finally:
        await client.close()


async def _set_paused(context: click.Context, what: Sequence[str], namespace: str, *, paused: bool) -> None:
    name = _name(what)
    client = settings_of(context).client()
    try:
        if (await client.get(Deployment, name, namespace=namespace)).spec.paused == paused:
            fail(f'deployments.apps "{name}" is {"already" if paused else "not"} paused')
        await client.patch(Deployment, name, {"spec": {"paused": paused or None}}, namespace=namespace)
        click.echo(f"{_label(name)} {'paused' if paused else 'resumed'}")
    finally:
        await client.close()


@rollout.command()
@_WHAT
@namespace_option
@click.pass_context
@coroutine
async def pause(context: click.Context, what: Sequence[str], namespace: str) -> None:
    """Hold a rollout where it is."""
    await _set_paused(context, what, namespace, paused=True)


@rollout.command()
@_WHAT
@namespace_option
@click.pass_context
@coroutine
async def resume(context: click.Context, what: Sequence[str], namespace: str) -> None:
    """Let a held rollout go on."""
    await _set_paused(context, what, namespace, paused=False)
