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
from chaos.report import line, matrix
from chaos.runner import Run, run
from chaos.verdict import Report
from controlplane.base.clock import SystemClock
from controlplane.base.errors import ConfigError
from controlplane.cli.common import err
from controlplane.local.cluster import LocalCluster

__all__ = ["Memory", "cut_logs", "keep_newest", "memory", "soak", "stretch_s", "told", "why"]

_RUNS_KEPT: Final = 12
#: In less, faults may not meet: `everything-at-once` claims that they do, and is itself as long.
_SHORTEST_S: Final = 45.0
_LOG_BYTES_MAX: Final = 64 * 1024 * 1024


async def soak(
    cluster: LocalCluster, experiment: Experiment, *, seed: int, hours: float, minutes: float, rates: Rates
) -> Verdict:
    """Until the time is up or a verdict is no pass; then, or when cancelled, the table of all. Each run's seed is the
    last one's plus one.

    Raises:
        ConfigError: the experiment has no random faults.
    """
    if experiment.schedule is None:
        raise ConfigError(f"{experiment.name} has no schedule")
    clock = SystemClock()
    ends_s = clock.monotonic() + hours * 3600
    reports: list[Report] = []
    verdict = Verdict.INCONCLUSIVE
    passed: list[Path] = []
    first = memory(cluster, clock.wall_ms() / 1000)
    click.echo(f"memory at the beginning: {told(first)}")
    try:
        while duration_s := stretch_s(ends_s - clock.monotonic(), minutes * 60, first=not reports):
            left_h = max(0.0, ends_s - clock.monotonic()) / 3600
            click.echo(
                f"stretch {len(reports) + 1}: {duration_s:.0f} s of random faults, seed {seed}, {left_h:.2f} h left"
            )
            schedule = replace(experiment.schedule, duration_s=duration_s)
            found = await run(
                cluster, [replace(experiment, schedule=schedule)], name="soak", seed=seed, rates=rates,
                say=say_to(err), display=Display(err),
            )  # fmt: skip
            now = memory(cluster, clock.wall_ms() / 1000)
            reports.append(found.report)
            verdict = found.verdict
            click.echo(f"{found.folder.name}  seed {seed}  {verdict.value}  memory: {told(now)}")
            if verdict is not Verdict.PASS:
                click.echo("\n".join(why(found)))
                break
            passed.append(found.folder)
            keep_newest(passed, _RUNS_KEPT)
            cut_logs([cluster.processes.log_path(name) for name in cluster.names], _LOG_BYTES_MAX)
            seed += 1
    finally:
        if reports:
            click.echo()
            click.echo(matrix(reports))
    return verdict


def stretch_s(left_s: float, wanted_s: float, *, first: bool) -> float:
    """How long random faults are drawn before the next verdict; 0: no more. The last stretch takes the rest with it,
    and one that is too short to prove anything is not begun, but for the only one."""
    shortest_s = min(_SHORTEST_S, wanted_s)
    if first:
        return min(wanted_s, max(shortest_s, left_s))
    if left_s < max(shortest_s, wanted_s / 2):
        return 0.0
    return left_s if left_s < 1.5 * wanted_s else wanted_s


def why(found: Run) -> list[str]:
    """What kept a run from passing, and where to read of it."""
    report = found.report
    findings = [*(finding for act in report.acts for finding in act.findings), *report.findings]
    return [
        *(line(finding) for finding in findings if finding.verdict is not Verdict.PASS),
        *([f"cut short: {found.cut_short}"] if found.cut_short else []),
        f"report: {found.folder / 'report.html'}",
    ]


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
