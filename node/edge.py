"""``python -m node.edge``: Service addresses for a machine that runs no pods.

A client outside the nodes' hosts reaches Services as one on a node does: through the proxy of its own machine. Owns
nothing: follows the API with a node's certificate, serves every Service, takes part in nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from pathlib import Path

import click

from controlplane.base.clock import SystemClock
from controlplane.base.errors import ConfigError
from controlplane.base.log import LEVELS, setup_logging
from controlplane.base.rand import SystemRand
from controlplane.client.endpoints import parse_endpoints
from controlplane.client.grpc_client import GrpcClient
from controlplane.client.tls import Reloader, TlsFiles
from controlplane.pb.k8s.core_v1_pb2 import Service
from node.proxy.userspace import UserspaceProxy

__all__ = ["main"]

log = logging.getLogger("quarterdeck.edge")


async def _serve(endpoints: list[str], files: TlsFiles | None) -> None:
    clock, rand = SystemClock(), SystemRand()
    tls = Reloader(files, clock=clock) if files is not None else None
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    async with GrpcClient(endpoints, field_manager="edge", credentials=tls, clock=clock, rand=rand) as client:
        proxy = UserspaceProxy(client, clock=clock, rand=rand, report=_report)
        renewal = asyncio.create_task(tls.run()) if tls is not None else None
        await proxy.start()
        log.info("edge up endpoints=%s", ",".join(endpoints))
        try:
            await stop.wait()
        finally:
            await proxy.stop()
            if renewal is not None:
                renewal.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await renewal


def _report(service: Service, reason: str, message: str) -> None:
    # Events are for nodes to write; the log has it.
    log.warning(
        "service not served namespace=%s name=%s reason=%s message=%r",
        service.metadata.namespace, service.metadata.name, reason, message,
    )  # fmt: skip


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--endpoints", required=True, help="HOST:PORT of every replica, separated by commas.")
@click.option("--tls-ca", type=click.Path(path_type=Path), help="Certificate authority (PEM); turns TLS on.")
@click.option("--tls-cert", type=click.Path(path_type=Path), help="A node's certificate.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="The key of that.")
@click.option("--log-level", default="info", show_default=True, type=click.Choice(LEVELS))
def main(endpoints: str, tls_ca: Path | None, tls_cert: Path | None, tls_key: Path | None, log_level: str) -> None:
    """Serve the Service addresses of the cluster at ENDPOINTS on this machine, which is no node of it."""
    setup_logging(log_level)
    try:
        asyncio.run(_serve(parse_endpoints(endpoints), TlsFiles.of(tls_ca, tls_cert, tls_key)))
    except ConfigError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
