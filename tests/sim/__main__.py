"""``python -m tests.sim --seed N`` replays one run; ``--seeds K [--first N]`` runs many, on all cores."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import islice

from tests.sim.options import FAULTS, draw
from tests.sim.world import Result, World


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one seed."""

    seed: int
    result: Result | None
    error: str = ""


def run(seed: int, without: tuple[str, ...]) -> Outcome:
    """One seed, in whatever process."""
    options = draw(seed)
    options = replace(options, faults=options.faults - set(without))
    try:
        return Outcome(seed, World(seed, options=options).run())
    except Exception:  # noqa: BLE001 - whatever it is, the seed replays it
        return Outcome(seed, None, f"{traceback.format_exc()}\n{_replay(seed, without)}\n  options: {options.line()}")


def _replay(seed: int, without: tuple[str, ...]) -> str:
    replay = f"make sim SEED={seed}"
    if without:
        replay = f".venv/bin/python -m tests.sim --seed {seed} --without {','.join(without)}"
    return f"FAILED seed={seed} commit={_commit()}\n  replay: {replay}"


def _commit() -> str:
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "unknown"


def _in_parallel(seeds: range, without: tuple[str, ...], jobs: int) -> Iterator[Outcome]:
    """In the order in which they end; never more in the queue than the processes need."""
    with ProcessPoolExecutor(jobs, initializer=_in_child) as pool:
        left = iter(seeds)
        running: set[Future[Outcome]] = {pool.submit(run, seed, without) for seed in islice(left, 2 * jobs)}
        try:
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                running |= {pool.submit(run, seed, without) for seed in islice(left, len(done))}
                for future in done:
                    yield future.result()
        finally:
            for future in running:
                future.cancel()


def _in_child() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, and ends us
    logging.disable(logging.CRITICAL)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this seed only")
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds to run")
    parser.add_argument("--first", type=int, default=1, help="the first of them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--without", default="", help=f"faults to leave out, with commas: {', '.join(FAULTS)}")
    parser.add_argument("--keep-going", action="store_true", help="run all seeds even if one fails")
    parser.add_argument("--verbose", action="store_true", help="log what the replicas log")
    options = parser.parse_args()
    without = tuple(name for name in options.without.split(",") if name)
    if unknown := set(without) - set(FAULTS):
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    if options.seed is not None:
        logging.basicConfig(
            level=logging.INFO if options.verbose else logging.CRITICAL + 1, format="%(name)s %(message)s"
        )
        return _show(run(options.seed, without))
    return _many(range(options.first, options.first + options.seeds), without, options.jobs, options.keep_going)


def _show(outcome: Outcome) -> int:
    if outcome.result is None:
        print(outcome.error, file=sys.stderr)  # noqa: T201
        return 1
    print(outcome.result.line())  # noqa: T201
    return 0


def _many(seeds: range, without: tuple[str, ...], jobs: int, keep_going: bool) -> int:
    started = time.monotonic()
    ended = failed = acked = 0
    virtual_s = 0.0
    try:
        for outcome in _in_parallel(seeds, without, jobs):
            ended += 1
            if outcome.result is None:
                failed += 1
                print(f"\n{outcome.error}", file=sys.stderr)  # noqa: T201
                if not keep_going:
                    break
            else:
                acked += outcome.result.acked
                virtual_s += outcome.result.virtual_s
            if sys.stderr.isatty():
                print(f"\r{ended} of {len(seeds)}, {failed} failed ", end="", file=sys.stderr, flush=True)  # noqa: T201
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)  # noqa: T201
    real_s = time.monotonic() - started
    print(  # noqa: T201
        f"{ended} seeds, {failed} failed, {acked} writes acknowledged, {virtual_s:.0f} virtual seconds "
        f"in {real_s:.1f} s: {3600 * ended / max(real_s, 0.001):.0f} seeds an hour on {jobs} processes"
    )
    return 1 if failed or ended < len(seeds) else 0


if __name__ == "__main__":
    sys.exit(main())
