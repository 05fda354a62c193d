"""A run from beginning to end: the load started, trials played, the cluster healed, everything written down and judged.

Owns the folder of one run (``.quarterdeck/chaos/STAMP-NAME/``) and the rule that a run begins on a whole cluster with
an empty undo list. However it ends (a deviation, Ctrl-C), the cluster is healed and what was recorded is kept; if this
process is killed, or told twice to stop, ``qd chaos heal`` does it.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import subprocess
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import psutil

from chaos.display import Board, Display
from chaos.experiment import Experiment
from chaos.fault import FaultError
from chaos.findings import Verdict
from chaos.ground import WORKLOAD, Ground, aside, to_its_end
from chaos.history import Recorder, load
from chaos.journal import journal
from chaos.load import Load, LoadError, Rates
from chaos.lookout import Lookout
from chaos.nodewatch import NodeWatch
from chaos.probes import service_address
from chaos.random_faults import trial_rand
from chaos.records import Header
from chaos.report import write_all
from chaos.stage import Stage, heal_entry
from chaos.trial import TrialLog, play_trial
from chaos.undo import UndoList, only_one
from chaos.verdict import Report, judge_history
from chaos.whole import Whole
from chaos.workload import fetch
from chaos.workload.contest import shared_prefix
from controlplane.base.clock import Clock, SystemClock
from controlplane.base.errors import ConfigError, QuarterdeckError, StatusError
from controlplane.base.rand import SystemRand
from controlplane.client import NotFoundError
from controlplane.local.cluster import LocalCluster

__all__ = ["Run", "check_runnable", "heal_cluster", "heal_left", "put_back", "run"]

#: Of each process, for the report: enough for the first of many trials, and as much as the report reads.
_LOG_LINES: Final = 50_000
_LOG_BYTES: Final = 4_000_000


@dataclass(frozen=True, slots=True)
class Run:
    """What a run left: its report and its folder. ``cut_short``: why it ended before its last trial."""

    report: Report
    folder: Path
    seed: int
    cut_short: str
    trials: Sequence[TrialLog] = field(default=())

    @property
    def verdict(self) -> Verdict:
        """The report's, but no pass for a run that did not come to its end."""
        if self.cut_short and self.report.verdict is Verdict.PASS:
            return Verdict.INCONCLUSIVE
        return self.report.verdict


def check_runnable(cluster: LocalCluster, experiments: Sequence[Experiment]) -> None:
    """Refuse before anything is touched.

    Raises:
        ConfigError: something is left to heal, or the cluster is not what an experiment wants; says what to do.
    """
    left = UndoList(cluster.root / "chaos").entries
    if left:
        raise ConfigError(
            f"a run was stopped and has not healed ({'; '.join(entry.strike.says for entry in left)}). "
            "Heal first: qd chaos heal"
        )
    spec = cluster.spec
    for experiment in experiments:
        wants = experiment.settings
        if wants.store and wants.store != spec.store_kind:
            raise ConfigError(f"{experiment.name} needs a cluster whose store is {wants.store}: make cluster STORE=…")
        if len(spec.replicas) < wants.replicas_min or len(spec.nodes) < wants.nodes_min:
            raise ConfigError(
                f"{experiment.name} needs {wants.replicas_min} replicas and {wants.nodes_min} nodes; there are "
                f"{len(spec.replicas)} and {len(spec.nodes)}: make cluster REPLICAS=… NODES=…"
            )


async def run(
    cluster: LocalCluster,
    experiments: Sequence[Experiment],
    *,
    name: str,
    seed: int,
    repeat: int = 1,
    rates: Rates | None = None,
    say: Callable[[str], None],
    display: Display | None = None,
    clock: Clock | None = None,
) -> Run:
    """Play the experiments, in order, ``repeat`` times, under one load, on a cluster that runs the workload.

    Raises:
        ConfigError: as :func:`check_runnable`; the workload is not there; another run is at work.
        QuarterdeckError: the cluster was not whole to begin with.
    """
    check_runnable(cluster, experiments)
    with only_one(cluster.root / "chaos"):
        runner = _Runner(cluster, experiments, name, seed, repeat, rates or Rates(), say, display, clock)
        return await runner.run()


async def heal_cluster(cluster: LocalCluster, say: Callable[[str], None]) -> int:
    """Undo what a run that was killed has left, start what does not run, and wait until the cluster is whole; returns
    how many strikes were healed.

    Raises:
        ConfigError: a run is at work, or the list cannot be read.
        FaultError: something could not be healed; it stays on the list.
    """
    with only_one(cluster.root / "chaos"):
        async with Ground.open(cluster, say=say, broken=True) as ground:
            entries = ground.undo.entries
            await put_back(ground)
            wanted = await ground.patiently(ground.count_wanted)
            await Whole(ground, wanted).wait()
            return len(entries)


async def put_back(ground: Ground) -> None:
    """:func:`heal_left`, also if the caller is cancelled meanwhile. Cancelled again it is given up, and what is left
    broken is said."""
    try:
        await to_its_end(heal_left(ground))
    except asyncio.CancelledError:
        if left := ground.undo.entries:
            ground.say(f"left broken: {'; '.join(entry.strike.says for entry in left)}. Put it back: qd chaos heal")
        raise


async def heal_left(ground: Ground) -> None:
    """Every entry of the undo list, the newest first; then what does not run is started, and what could not be healed
    is tried once more: it may need a cluster that serves. Who is a victim of what is not healed is started last, if
    that could be healed then: what its disk is like is not known."""
    failures = await _heal_each(ground)
    unhealed = {victim for entry in ground.undo.entries for victim in entry.strike.victims}
    await _start_dead(ground, but=unhealed)
    if failures:
        failures = await _heal_each(ground)
    if failures:
        raise failures[0]
    await _start_dead(ground)


async def _heal_each(ground: Ground) -> list[QuarterdeckError]:
    failures: list[QuarterdeckError] = []
    for entry in ground.undo.entries:
        ground.say(f"healing: {entry.strike.says}")
        try:
            await heal_entry(ground, entry)
        except (FaultError, ConfigError) as error:
            failures.append(error)  # the others are healed all the same
    return failures


async def _start_dead(ground: Ground, *, but: Collection[str] = ()) -> None:
    running = ground.cluster.running()
    for dead in (name for name in ground.cluster.names if name not in running and name not in but):
        ground.say(f"starting {dead}, which does not run")
        await aside(ground.cluster.start, dead)


class _Runner:
    def __init__(
        self,
        cluster: LocalCluster,
        experiments: Sequence[Experiment],
        name: str,
        seed: int,
        repeat: int,
        rates: Rates,
        say: Callable[[str], None],
        display: Display | None,
        clock: Clock | None,
    ) -> None:
        self._cluster = cluster
        self._experiments = experiments
        self._name, self._seed, self._repeat = name, seed, repeat
        self._rates = rates
        self._say = say
        self._display = display
        self._clock = clock or SystemClock()
        started = datetime.now(UTC)
        self._started_at = started.isoformat(timespec="milliseconds")
        self._folder = cluster.root / "chaos" / f"{started.strftime('%Y%m%dT%H%M%S.%fZ')}-{name}"
        self._trials: list[tuple[Experiment, TrialLog]] = []
        self._current: tuple[str, int] = ("run", 1)

    async def run(self) -> Run:
        self._folder.mkdir(parents=True)
        await asyncio.to_thread(self._describe)
        async with Ground.open(self._cluster, say=self._say, clock=self._clock) as ground:
            address = await self._workload(ground)
            whole = Whole(ground, ground.seen.wanted)
            await whole.wait()
            failure = await fetch(*address, timeout_s=2.0)
            if failure is not None:
                raise QuarterdeckError(f"the Service at {address[0]}:{address[1]} does not answer: {failure}")
            cut_short = await self._under_load(ground, whole, address)
        report = await asyncio.to_thread(self._finish)
        return Run(report, self._folder, self._seed, cut_short, [log for _, log in self._trials])

    async def _workload(self, ground: Ground) -> tuple[str, int]:
        try:
            await ground.count_wanted()
            return await service_address(ground.client)
        except NotFoundError as error:
            raise ConfigError(
                f"chaos plays on the Deployment and Service {WORKLOAD!r}: {error.message}. "
                "Try: qd apply -f examples/web.yaml"
            ) from error

    async def _under_load(self, ground: Ground, whole: Whole, address: tuple[str, int]) -> str:
        spec, rand = self._cluster.spec, SystemRand()
        run = rand.token(4).hex()
        header = Header(
            run,
            f"/chaos/{run}/",
            self._started_at,
            spec.kv_endpoints,
            spec.store_kind,
            shared_prefix=shared_prefix(f"/chaos/{run}/"),
        )
        cut_short = not_healed = ""
        with Recorder(self._folder / "history.jsonl", header, self._clock) as recorder:
            try:
                async with AsyncExitStack() as stack:
                    lookout = await stack.enter_async_context(
                        Lookout(
                            ground.replicas,
                            self._clock,
                            lambda leader, term, roles: self._seen(recorder, leader, term, roles),
                        )
                    )
                    await stack.enter_async_context(NodeWatch(ground, recorder))
                    load_ = await stack.enter_async_context(
                        Load(
                            spec.kv_endpoints, address, prefix=header.prefix, recorder=recorder, rates=self._rates,
                            clock=self._clock, rand=rand, foreign=bool(spec.store),
                            credentials=self._cluster.credentials(),
                            parts={part for e in self._experiments for part in e.settings.workload},
                            api=ground.client, cluster=self._cluster,
                        )
                    )  # fmt: skip
                    if self._display is not None:
                        board = Board(ground, lookout, load_, lambda: self._current)
                        await stack.enter_async_context(self._display.following(board))
                    cut_short = await self._play(ground, whole, lookout, load_, recorder)
                    try:
                        await load_.finish()
                    except StatusError as error:
                        cut_short = cut_short or f"the final read-back: {error.message}"
            finally:
                if ground.undo.entries:
                    self._say(f"putting back: {', '.join(e.strike.says for e in ground.undo.entries)}")
                not_healed = await self._put_back(ground, whole)
            # Last, so that the file says the same as whoever ran it: what could not be put back is no end.
            if not (cut_short or not_healed):
                recorder.mark("run", 1, "run-ended")
        return cut_short or not_healed

    async def _put_back(self, ground: Ground, whole: Whole) -> str:
        """Heal what is left; what is wrong still, or nothing. What was recorded is judged in any case."""
        try:
            await put_back(ground)
            await whole.wait()
        except QuarterdeckError as error:
            self._say(f"not healed: {error}")
            return f"not healed: {error}"
        return ""

    def _seen(self, recorder: Recorder, leader: str | None, term: int, roles: Mapping[str, str]) -> None:
        recorder.mark(*self._current, "seen", leader=leader, term=term, roles=dict(roles))

    async def _play(self, ground: Ground, whole: Whole, lookout: Lookout, load_: Load, recorder: Recorder) -> str:
        """Why the trials ended early, or nothing."""
        for n in range(1, self._repeat + 1):
            for experiment in self._experiments:
                self._current = (experiment.name, n)
                self._say(f"experiment: {experiment.name}" + (f", {n} of {self._repeat}" if self._repeat > 1 else ""))
                stage = Stage(
                    ground=ground, lookout=lookout, act=experiment.name, n=n, wanted=ground.seen.wanted,
                    rand=trial_rand(self._seed, experiment.name, n), by=self._folder.name,
                    allow_quorum_loss=experiment.settings.allow_quorum_loss, recorder=recorder, load=load_,
                )  # fmt: skip
                try:
                    log = await play_trial(stage, experiment, whole, self._seed)
                except LoadError as error:
                    return f"{experiment.name}: {error}"
                finally:
                    self._current = ("run", 1)
                self._trials.append((experiment, log))
                if not log.whole:
                    return f"{experiment.name}: the cluster was not whole again: {'; '.join(log.deviations)}"
        return ""

    # -- files -------------------------------------------------------------------------------------------------------

    def _describe(self) -> None:
        """experiment.json: enough to do the same again."""
        text = {
            "version": 1,
            "name": self._name,
            "title": "; ".join(experiment.title for experiment in self._experiments),
            "seed": self._seed,
            "repeat": self._repeat,
            "commit": _commit(),
            "versions": {
                "quarterdeck": metadata.version("quarterdeck"),
                "python": platform.python_version(),
                "linux": platform.release(),
            },
            "machine": {"processors": os.cpu_count(), "memory_bytes": psutil.virtual_memory().total},
            "cluster": {
                "replicas": len(self._cluster.spec.replicas),
                "nodes": len(self._cluster.spec.nodes),
                "store": self._cluster.spec.store_kind,
                "tls": self._cluster.spec.tls,
            },
            "experiments": [{"name": e.name, **e.raw} for e in self._experiments],
        }
        (self._folder / "experiment.json").write_text(json.dumps(text, indent=2, default=str) + "\n")

    def _finish(self) -> Report:
        logs = self._folder / "logs"
        logs.mkdir()
        for name in self._cluster.names:
            text = self._cluster.processes.log_tail(name, _LOG_LINES, _LOG_BYTES)
            (logs / f"{name}.log").write_text(text + "\n")
        history = load(self._folder / "history.jsonl")
        report = judge_history(history)
        write_all(self._folder, report)
        found: dict[str, Any] = journal(self._trials, report, seed=self._seed)
        (self._folder / "journal.json").write_text(json.dumps(found, indent=2, default=str) + "\n")
        return report


def _commit() -> str:
    """The commit of the source tree this runs from; empty: it is none."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return ""
    try:
        found = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"],  # noqa: S607
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        return ""
    return found.stdout.strip()
