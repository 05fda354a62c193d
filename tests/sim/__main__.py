"""``python -m tests.sim --seed N`` replays one run; ``--seeds K [--first N]`` runs many."""

from __future__ import annotations

import argparse
import logging
import sys
import time
import traceback

from tests.sim.world import run_seed


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, help="run this seed only")
    parser.add_argument("--seeds", type=int, default=200, help="how many seeds to run")
    parser.add_argument("--first", type=int, default=1, help="the first of them")
    parser.add_argument("--keep-going", action="store_true", help="run all seeds even if one fails")
    parser.add_argument("--verbose", action="store_true", help="log what the replicas log")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO if options.verbose else logging.CRITICAL + 1, format="%(name)s %(message)s")
    seeds = [options.seed] if options.seed is not None else range(options.first, options.first + options.seeds)
    started = time.monotonic()
    failed = 0
    virtual_s = 0.0
    acked = 0
    for seed in seeds:
        try:
            result = run_seed(seed)
        except Exception:  # noqa: BLE001 - whatever it is, the seed replays it
            failed += 1
            traceback.print_exc()
            print(f"FAILED seed={seed}; replay: python -m tests.sim --seed {seed}", file=sys.stderr)  # noqa: T201
            if not options.keep_going:
                break
            continue
        virtual_s += result.virtual_s
        acked += result.acked
        if options.seed is not None:
            print(result.line())  # noqa: T201
    real_s = time.monotonic() - started
    print(  # noqa: T201
        f"{len(seeds)} seeds, {failed} failed, {acked} writes acknowledged, "
        f"{virtual_s:.0f} virtual seconds in {real_s:.1f} s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
