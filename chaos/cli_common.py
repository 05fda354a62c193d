"""What the commands of ``qd chaos`` share: exit codes, Ctrl-C that heals, lines with the time before them."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

from rich.console import Console

from chaos.findings import Verdict
from chaos.remote import RemoteCluster
from controlplane.base.errors import ConfigError
from controlplane.cli.common import Settings, err, find_folder
from controlplane.client.endpoints import parse_endpoints
from controlplane.local.cluster import FOLDER, LocalCluster

__all__ = ["EXIT_CODES", "interruptible", "newest_run", "reached", "running", "say_to"]

EXIT_CODES: Final = {Verdict.PASS: 0, Verdict.FAIL: 1, Verdict.INCONCLUSIVE: 4}

#: Under a folder of ours, one folder for each cluster that is reached by agents.
_REMOTE: Final = "remote"

T = TypeVar("T")


def say_to(console: Console) -> Callable[[str], None]:
    """Prints a line with the seconds since now before it."""
    began = time.monotonic()

    def say(text: str) -> None:
        console.print(f"{time.monotonic() - began:6.2f}  {text}", markup=False)

    return say


def running(settings: Settings) -> LocalCluster:
    """The local cluster, of which everything runs. Raises ConfigError."""
    cluster = settings.local()
    stopped = [name for name in cluster.names if name not in cluster.running()]
    if stopped:
        raise ConfigError(
            f"not running: {', '.join(stopped)}; chaos needs a whole cluster to begin with. "
            "Try: qd chaos heal, or qd local up"
        )
    return cluster


@contextmanager
def reached(settings: Settings, agents: str, *, whole: bool = True) -> Iterator[LocalCluster]:
    """The local cluster, or that of some chaos agents, which everything of runs if it shall be ``whole``.

    Raises:
        ConfigError: there is none, or part of it does not run.
    """
    if not agents:
        yield running(settings) if whole else settings.local()
        return
    credentials = settings.credentials()
    if credentials is None:
        raise ConfigError("chaos agents take orders of an administrator only: --ca, --cert, --key")
    addresses = parse_endpoints(agents)
    cluster = RemoteCluster(_remote_root(settings, addresses), addresses, credentials)
    try:
        wanted = set(settings.resolve_endpoints()) if settings.endpoints else set()
        if wanted - set(cluster.spec.endpoints):
            raise ConfigError(f"no agent has the replicas at {', '.join(sorted(wanted - set(cluster.spec.endpoints)))}")
        if whole and (stopped := sorted(set(cluster.names) - set(cluster.running()))):
            raise ConfigError(f"not running: {', '.join(stopped)}; try: qd chaos heal --agents {agents}")
        yield cluster
    finally:
        cluster.close()


def newest_run(settings: Settings, agents: str) -> Path:
    """The folder of the newest run recorded here: of the cluster of these agents, or, where none are named, of the
    local cluster and of any that was reached by agents. Asks nobody.

    Raises:
        ConfigError: there is none.
    """
    if agents:
        roots = [_remote_root(settings, parse_endpoints(agents))]
    else:
        here = settings.folder or Path(FOLDER)
        roots = [settings.folder or find_folder() or here, *(here / _REMOTE).glob("*")]
    found = [history.parent for root in roots for history in (root / "chaos").glob("*/history.jsonl")]
    if not found:
        raise ConfigError("no run has been recorded here; try: qd chaos run leader-kill")
    return max(found, key=lambda folder: folder.name)  # names begin with the time


def _remote_root(settings: Settings, agents: Sequence[str]) -> Path:
    """What runs at these agents' cluster leave on this machine."""
    return (settings.folder or Path(FOLDER)) / _REMOTE / agents[0].replace(":", "-")


async def interruptible(work: Coroutine[Any, Any, T]) -> T:
    """Run it; Ctrl-C or SIGTERM cancels it, so that its clean-up (healing the cluster) runs to its end; the second
    one cancels the clean-up too.

    Raises:
        KeyboardInterrupt: after that.
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)

    def interrupt() -> None:
        if not task.cancelling():
            err.print("stopping; what is broken is put back first (once more: it is left broken)")
        task.cancel()

    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, interrupt)
    try:
        return await task
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        for signum in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(signum)
