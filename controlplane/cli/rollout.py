"""``qd rollout``: following a Deployment's rollout, its history, undoing, pausing, restarting it."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime

import click

from controlplane.base.errors import ConfigError
from controlplane.cli.common import coroutine, fail, settings_of
from controlplane.cli.kinds import KindType, kind_of, targets
from controlplane.cli.options import namespace_option
from controlplane.cli.tables import table
from controlplane.client import ConflictError, GrpcClient
from controlplane.client.codec import to_dict
from controlplane.pb.k8s.apps_v1_pb2 import Deployment, ReplicaSet

__all__ = ["rollout", "rollout_state"]

_REVISION = "deployment.kubernetes.io/revision"
_HASH = "pod-template-hash"


def _name(what: str) -> str:
    """``deployment/web`` (or a short form of it) -> ``web``."""
    info, name = targets([what] if "/" in what else ["deployment", what])[0]
    if info is not kind_of("deployment"):
        raise ConfigError(f"{what}: only deployments have rollouts")
    return name


@click.group()
def rollout() -> None:
    """Follow, undo, pause and restart rollouts of a Deployment."""


def rollout_state(deployment: Deployment) -> tuple[str, bool]:
    """What to say of a rollout, and whether it is complete. The words are kubectl's."""
    name, status, wanted = deployment.metadata.name, deployment.status, deployment.spec.replicas
    if status.observedGeneration < deployment.metadata.generation:
        return "Waiting for deployment spec update to be observed...", False
    for condition in status.conditions:
        if condition.type == "Progressing" and condition.reason == "ProgressDeadlineExceeded":
            fail(f'deployment "{name}" exceeded its progress deadline')
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
@click.argument("what", type=KindType(), metavar="deployment/NAME")
@namespace_option
@click.option("--timeout", "timeout_s", type=float, default=300.0, show_default=True, help="Seconds; 0 looks once.")
@click.pass_context
@coroutine
async def rollout_status(context: click.Context, what: str, namespace: str, timeout_s: float) -> None:
    """Follow a rollout until it is complete; exit code 1 if it is not."""
    client = settings_of(context).client()
    deadline = time.monotonic() + timeout_s
    said = ""
    try:
        while True:
            text, complete = rollout_state(await client.get(Deployment, _name(what), namespace=namespace))
            if text != said:
                click.echo(text)
                said = text
            if complete:
                return
            if time.monotonic() >= deadline:
                fail("the rollout is not complete" + (f" after {timeout_s:g} s" if timeout_s else ""))
            await asyncio.sleep(0.1)
    finally:
        await client.close()


async def _history(client: GrpcClient, name: str, namespace: str) -> list[tuple[int, ReplicaSet]]:
    deployment = await client.get(Deployment, name, namespace=namespace)
    owned = [
        rs
        for rs in (await client.list(ReplicaSet, namespace=namespace)).items
        if any(ref.uid == deployment.metadata.uid for ref in rs.metadata.ownerReferences)
    ]
    numbered = [(int(rs.metadata.annotations.get(_REVISION, "0")), rs) for rs in owned]
    return sorted(numbered, key=lambda pair: pair[0])


@rollout.command()
@click.argument("what", type=KindType(), metavar="deployment/NAME")
@namespace_option
@click.pass_context
@coroutine
async def history(context: click.Context, what: str, namespace: str) -> None:
    """List the revisions that can be gone back to."""
    client = settings_of(context).client()
    try:
        rows = []
        for revision, rs in await _history(client, _name(what), namespace):
            cause = rs.metadata.annotations.get("kubernetes.io/change-cause", "<none>")
            rows.append([str(revision), rs.metadata.name, str(rs.spec.replicas), cause])
        click.echo(table(["REVISION", "REPLICASET", "PODS", "CHANGE-CAUSE"], rows))
    finally:
        await client.close()


@rollout.command()
@click.argument("what", type=KindType(), metavar="deployment/NAME")
@namespace_option
@click.option("--to-revision", type=int, default=0, help="Default: the revision before the current one.")
@click.pass_context
@coroutine
async def undo(context: click.Context, what: str, namespace: str, to_revision: int) -> None:
    """Go back to an earlier revision of the pod template."""
    name = _name(what)
    client = settings_of(context).client()
    try:
        revisions = await _history(client, name, namespace)
        if to_revision:
            chosen = next((rs for revision, rs in revisions if revision == to_revision), None)
            if chosen is None:
                fail(f"no revision {to_revision}; there are: {', '.join(str(r) for r, _ in revisions)}")
        elif len(revisions) < 2:
            fail(f'deployment "{name}" has no earlier revision')
        else:
            chosen = revisions[-2][1]
        template = to_dict(chosen)["spec"]["template"]
        template["metadata"].get("labels", {}).pop(_HASH, None)
        # A JSON patch replaces the template whole: a merge would keep what the newer one added.
        operation = [{"op": "replace", "path": "/spec/template", "value": template}]
        await client.patch(Deployment, name, operation, namespace=namespace, json_patch=True)
        click.echo(f"deployment/{name} rolled back")
    finally:
        await client.close()


async def _patch(context: click.Context, what: str, namespace: str, patch: dict[str, object], done: str) -> None:
    name = _name(what)
    client = settings_of(context).client()
    try:
        for _ in range(5):
            try:
                await client.patch(Deployment, name, patch, namespace=namespace)
                break
            except ConflictError:
                continue  # somebody wrote in between; the patch says only what we want, so again
        click.echo(f"deployment/{name} {done}")
    finally:
        await client.close()


@rollout.command()
@click.argument("what", type=KindType(), metavar="deployment/NAME")
@namespace_option
@click.pass_context
@coroutine
async def restart(context: click.Context, what: str, namespace: str) -> None:
    """Replace every pod, by the Deployment's own rolling update."""
    stamp = datetime.now(UTC).isoformat(timespec="seconds")
    annotations = {"kubectl.kubernetes.io/restartedAt": stamp}
    patch: dict[str, object] = {"spec": {"template": {"metadata": {"annotations": annotations}}}}
    await _patch(context, what, namespace, patch, "restarted")


@rollout.command()
@click.argument("what", type=KindType(), metavar="deployment/NAME")
@namespace_option
@click.pass_context
@coroutine
async def pause(context: click.Context, what: str, namespace: str) -> None:
    """Hold a rollout where it is."""
    await _patch(context, what, namespace, {"spec": {"paused": True}}, "paused")


@rollout.command()
@click.argument("what", type=KindType(), metavar="deployment/NAME")
@namespace_option
@click.pass_context
@coroutine
async def resume(context: click.Context, what: str, namespace: str) -> None:
    """Let a held rollout go on."""
    await _patch(context, what, namespace, {"spec": {"paused": None}}, "resumed")
