"""``python -m node``: the command line of the node agent."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from pathlib import Path

import click

from controlplane.base.clock import SystemClock
from controlplane.base.errors import ConfigError
from controlplane.base.log import LEVELS, setup_logging
from controlplane.base.rand import SystemRand
from controlplane.client.tls import TlsFiles
from node.agent import Agent
from node.config import AgentConfig, parse_capacity, parse_labels, parse_taint
from node.runtime import procs

log = logging.getLogger("quarterdeck.agent")


async def _serve(config: AgentConfig) -> None:
    agent = Agent(config, clock=SystemClock(), rand=SystemRand())
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, agent.stop)
    await agent.run()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--name", required=True, help="The node's name.")
@click.option("--endpoints", required=True, help="HOST:PORT of every replica, separated by commas.")
@click.option(
    "--state-dir", required=True, type=click.Path(path_type=Path), help="Where pods, logs and records are kept."
)
@click.option("--listen", default="127.0.0.1:0", show_default=True, help="Address of the agent's gRPC service.")
@click.option("--metrics-listen", default="127.0.0.1:0", show_default=True, help="Address of /metrics and /readyz.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label of the node; repeatable.")
@click.option("--capacity", default="", metavar="NAME=QUANTITY,...", help="Instead of what the machine has.")
@click.option("--taint", "taints", multiple=True, metavar="KEY[=VALUE]:EFFECT", help="A taint; repeatable.")
@click.option("--leave-pods", is_flag=True, help="On SIGTERM leave the pods running, for the next agent to adopt.")
@click.option("--proxy/--no-proxy", default=True, show_default=True, help="Serve Service addresses.")
@click.option("--pod-routes", is_flag=True, help="Make the pod range local to this host (root): others reach the pods.")
@click.option("--discover/--no-discover", default=True, show_default=True, help="Also use replicas that replicas name.")
@click.option("--shutdown-grace", "shutdown_grace_s", default=10.0, show_default=True, help="Longest grace, seconds.")
@click.option("--log-max-bytes", "log_bytes_max", default=10 * 1024 * 1024, show_default=True, help="Rotate beyond.")
@click.option("--log-max-files", "log_files_max", default=5, show_default=True, help="Files kept per container run.")
@click.option("--tls-ca", type=click.Path(path_type=Path), help="Certificate authority (PEM); turns TLS on.")
@click.option("--tls-cert", type=click.Path(path_type=Path), help="This node's certificate.")
@click.option("--tls-key", type=click.Path(path_type=Path), help="The key of that.")
@click.option("--log-level", default="info", show_default=True, type=click.Choice(LEVELS))
def main(
    name: str,
    endpoints: str,
    state_dir: Path,
    listen: str,
    metrics_listen: str,
    labels: tuple[str, ...],
    capacity: str,
    taints: tuple[str, ...],
    leave_pods: bool,
    proxy: bool,
    pod_routes: bool,
    discover: bool,
    shutdown_grace_s: float,
    log_bytes_max: int,
    log_files_max: int,
    tls_ca: Path | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    log_level: str,
) -> None:
    """Run a node agent: it joins the control plane at ENDPOINTS and runs the pods bound to it.

    SIGTERM or Ctrl-C stops the pods, then the agent; a second one does not wait for the pods.
    """
    try:
        config = AgentConfig(
            name=name,
            endpoints=tuple(part.strip() for part in endpoints.split(",") if part.strip()),
            state_dir=state_dir,
            listen=listen,
            metrics_listen=metrics_listen,
            labels=parse_labels(labels),
            capacity=parse_capacity(capacity),
            taints=tuple(parse_taint(text) for text in taints),
            leave_pods=leave_pods,
            proxy=proxy,
            pod_routes=pod_routes,
            discover=discover,
            shutdown_grace_s=shutdown_grace_s,
            log_bytes_max=log_bytes_max,
            log_files_max=log_files_max,
            log_level=log_level,
            tls=TlsFiles.of(tls_ca, tls_cert, tls_key),
        )
        config.validate()
    except ConfigError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(2)
    setup_logging(log_level)
    procs.children_hear_signals()
    try:
        # asyncio's own loop: child processes are watched through pidfds, and nothing here is hot enough for another.
        asyncio.run(_serve(config))
    except ConfigError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
