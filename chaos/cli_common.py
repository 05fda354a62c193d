"""What the commands of ``qd chaos`` share: exit codes, Ctrl-C that heals, lines with the time before them."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from rich.console import Console

from chaos.findings import Verdict
from controlplane.base.errors import ConfigError
from controlplane.cli.common import Settings, err
from controlplane.local.cluster import LocalCluster

__all__ = ["EXIT_CODES", "interruptible", "running", "say_to"]

EXIT_CODES: Final = {Verdict.PASS: 0, Verdict.FAIL: 1, Verdict.INCONCLUSIVE: 4}

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


async def interruptible(work: Coroutine[Any, Any, T]) -> T:
    """Run it; Ctrl-C cancels it once, so that its clean-up (healing the cluster) runs to its end.

    Raises:
        KeyboardInterrupt: after that.
    """
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    interrupted = False

    def interrupt() -> None:
        nonlocal interrupted
        if interrupted:
            err.print("healing the cluster; a moment")
            return
        interrupted = True
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
