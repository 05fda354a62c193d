"""The command's entry point: global options, and the sub-commands loaded when asked for.

Importing a sub-command's module costs (grpc, protobuf, rich), so each is imported when its name is used: ``qd
--help`` and shell completion stay quick.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from controlplane.cli.lazy import LazyGroup

__all__ = ["cli", "main"]

#: name -> (module, attribute, one line of help)
_COMMANDS: dict[str, tuple[str, str, str]] = {
    "get": ("controlplane.cli.get", "get", "Show objects, as a table, YAML or JSON"),
    "describe": ("controlplane.cli.describe", "describe", "Show one object in full, with its events"),
    "apply": ("controlplane.cli.write", "apply", "Create or update objects from manifests"),
    "delete": ("controlplane.cli.write", "delete", "Delete objects"),
    "scale": ("controlplane.cli.write", "scale", "Set the number of replicas of a Deployment or ReplicaSet"),
    "rollout": ("controlplane.cli.rollout", "rollout", "Follow, undo, pause and restart rollouts of a Deployment"),
    "logs": ("controlplane.cli.logs", "logs", "Print the logs of a pod's container"),
    "events": ("controlplane.cli.get", "events", "List events, oldest first"),
    "cordon": ("controlplane.cli.nodes", "cordon", "Mark nodes unschedulable"),
    "uncordon": ("controlplane.cli.nodes", "uncordon", "Mark nodes schedulable"),
    "drain": ("controlplane.cli.nodes", "drain", "Cordon a node and evict its pods"),
    "status": ("controlplane.cli.status", "status", "Show replicas, nodes and pods of the cluster"),
    "failpoints": ("controlplane.cli.failpoints", "failpoints", "List the failpoints that tests can arm"),
    "recover": ("controlplane.cli.recover", "recover", "Go on from a survivor when the majority is lost for good"),
    "member": ("controlplane.cli.member", "member", "List, add, remove and promote replicas"),
    "leader": ("controlplane.cli.member", "leader", "Move the leader to another replica"),
    "diff": ("controlplane.cli.diff", "diff", "Show how the cluster differs from a snapshot"),
    "snapshot": ("controlplane.cli.snapshot", "snapshot", "Save, verify and restore snapshots of the whole state"),
    "certs": ("controlplane.cli.certs", "certs", "Make, renew and look at certificates"),
    "local": ("controlplane.cli.local", "local", "Run a whole cluster on this machine"),
    "chaos": ("chaos.cli", "chaos", "Break things on purpose and judge what happened"),
    "verify": ("chaos.verify", "verify", "Judge a recorded history, ours or anybody's"),
    "completion": ("controlplane.cli.completion", "completion", "Print the shell completion script"),
    "api-resources": ("controlplane.cli.get", "api_resources", "List the kinds this cluster knows"),
}


_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)


@click.group(
    cls=LazyGroup, table=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(package_name="quarterdeck", prog_name="quarterdeck")
@click.option(
    "--endpoints",
    "-e",
    envvar="QD_ENDPOINTS",
    metavar="HOST:PORT,...",
    help="Client endpoints of the replicas. Default: the local cluster of this folder.",
)
@click.option(
    "--folder",
    envvar="QD_FOLDER",
    type=click.Path(path_type=Path, file_okay=False),
    help="The local cluster's folder. Default: the nearest .quarterdeck.",
)
@click.option("--ca", envvar="QUARTERDECK_CACERT", type=_FILE, help="Certificate authority of the replicas.")
@click.option("--cert", envvar="QUARTERDECK_CERT", type=_FILE, help="Your certificate; the local cluster's admin's.")
@click.option("--key", envvar="QUARTERDECK_KEY", type=_FILE, help="The key of that.")
@click.pass_context
def cli(
    context: click.Context,
    endpoints: str | None,
    folder: Path | None,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
) -> None:
    """Quarterdeck: a Raft-replicated, highly available control plane in the shape of Kubernetes."""
    from controlplane.cli.common import Settings

    chosen = tuple(part.strip() for part in (endpoints or "").split(",") if part.strip())
    given = context.obj or Settings()  # who calls from Python may have settings of its own
    tls = given.tls
    if ca or cert or key:
        if not (ca and cert and key):
            raise click.UsageError("--ca, --cert and --key go together")
        from controlplane.transport.tls import TlsFiles

        tls = TlsFiles(ca, cert, key)
    context.obj = replace(given, endpoints=chosen or given.endpoints, folder=folder or given.folder, tls=tls)


def main() -> None:
    """Entry point of the ``quarterdeck`` and ``qd`` commands."""
    cli(prog_name="qd")
