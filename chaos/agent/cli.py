"""``qd chaos agent``: the command that starts one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from pathlib import Path

import click

from chaos.agent.config import AgentConfig
from chaos.agent.server import AgentServer
from controlplane.base.clock import SystemClock
from controlplane.base.log import setup_logging
from controlplane.cli.common import coroutine
from controlplane.client.tls import Reloader, TlsFiles

__all__ = ["agent"]

log = logging.getLogger("quarterdeck.chaos-agent")
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--config", required=True, type=_FILE, help="Which processes it may break (YAML).")
@click.option("--listen", required=True, metavar="HOST:PORT", help="Where it takes orders.")
@click.option("--tls-ca", required=True, type=_FILE, help="The cluster's certificate authority.")
@click.option("--tls-cert", required=True, type=_FILE, help="A certificate that names this host.")
@click.option("--tls-key", required=True, type=_FILE, help="The key of that.")
@coroutine
async def agent(config: Path, listen: str, tls_ca: Path, tls_cert: Path, tls_key: Path) -> None:
    """Break this machine's processes for an administrator elsewhere. Runs until it is stopped; heals before it ends.

    Off unless you start it: whoever holds an administrator's certificate can then kill what CONFIG names. Without TLS
    it does not start. Every order is written to audit.jsonl in the state directory of CONFIG.
    """
    setup_logging("info")
    clock = SystemClock()
    server = AgentServer(AgentConfig.load(config), Reloader(TlsFiles(tls_ca, tls_cert, tls_key), clock=clock), clock)
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    await server.start(listen)
    log.warning("chaos agent up: an administrator may break this machine's processes listen=%s", listen)
    keeping = asyncio.create_task(server.run())
    try:
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({keeping, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if keeping.done():
            keeping.result()
    finally:
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping
        await server.stop()
