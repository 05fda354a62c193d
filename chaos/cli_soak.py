"""Random faults for hours: one run after the other, each with its verdict. Disk use is bounded: of runs that passed
only the newest are kept, and the logs of processes are cut. What each process holds of the memory is told with every
verdict: it should not grow for ever."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import click
import psutil

from chaos.cli_common import say_to
from chaos.display import Display
from chaos.experiment import Experiment
from chaos.findings import Verdict
from chaos.load import Rates
from chaos.report import matrix
from chaos.runner import run
from chaos.verdict import Report
from controlplane.base.clock import SystemClock
from controlplane.base.errors import ConfigError
from controlplane.cli.common import err
from controlplane.local.cluster import LocalCluster

__all__ = ["Memory", "cut_logs", "keep_newest", "memory", "soak", "told"]

_RUNS_KEPT: Final = 12
_LOG_BYTES_MAX: Final = 64 * 1024 * 1024


async def soak(
    cluster: LocalCluster, experiment: Experiment, *, seed: int, hours: float, minutes: float, rates: Rates
) -> Verdict:
    """Until the time is up or a verdict is no pass; the table of all. Each run's seed is the last one's plus one."""
    if experiment.schedule is None:
        raise ConfigError(f"{experiment.name} has no schedule")
    clock = SystemClock()
    ends_s = clock.monotonic() + hours * 3600
    schedule = replace(experiment.schedule, duration_s=minutes * 60)
    reports: list[Report] = []
    verdict = Verdict.INCONCLUSIVE
    passed: list[Path] = []
    first = memory(cluster, clock.wall_ms() / 1000)
    click.echo(f"memory at the beginning: {told(first)}")
    while clock.monotonic() < ends_s:
        schedule = replace(schedule, duration_s=min(schedule.duration_s, max(15.0, ends_s - clock.monotonic())))
        found = await run(
            cluster, [replace(experiment, schedule=schedule)], name="soak", seed=seed, rates=rates, say=say_to(err),
            display=Display(err),
        )  # fmt: skip
        now = memory(cluster, clock.wall_ms() / 1000)
        reports.append(found.report)
        verdict = found.verdict
        left_h = max(0.0, ends_s - clock.monotonic()) / 3600
        click.echo(f"{found.folder.name}  seed {seed}  {verdict.value}  {left_h:.2f} h left  memory: {told(now)}")
        if verdict is not Verdict.PASS:
            break
        passed.append(found.folder)
        keep_newest(passed, _RUNS_KEPT)
        cut_logs([cluster.processes.log_path(name) for name in cluster.names], _LOG_BYTES_MAX)
        seed += 1
    click.echo()
    click.echo(matrix(reports))
    return verdict


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one process: what it holds (RSS), and since when it runs: of one that was started anew nothing is learned."""

    mib: int
    runs_s: float


def memory(cluster: LocalCluster, now_s: float) -> dict[str, Memory]:
    """Of every process of the cluster that runs, and of this program."""
    pids = {name: cluster.processes.pid(name) for name in cluster.names} | {"load": os.getpid()}
    found: dict[str, Memory] = {}
    for name, pid in pids.items():
        if pid is not None:
            with suppress(psutil.NoSuchProcess):  # it ended between the two looks
                process = psutil.Process(pid)
                found[name] = Memory(process.memory_info().rss >> 20, max(0.0, now_s - process.create_time()))
    return found


def told(found: Mapping[str, Memory]) -> str:
    """In one line: MiB, and for how long each process runs."""
    return ", ".join(f"{name} {m.mib} MiB ({m.runs_s / 60:.0f} min)" for name, m in found.items())


def keep_newest(folders: list[Path], count: int) -> None:
    """Remove all but the newest, the last ones, from the disk and from the list."""
    while len(folders) > count:
        shutil.rmtree(folders.pop(0))


def cut_logs(paths: Sequence[Path], size_max: int) -> None:
    """Empty logs that have grown beyond a size: they are written by appending, so their writers go on."""
    for path in paths:
        if path.is_file() and path.stat().st_size > size_max:
            os.truncate(path, 0)
