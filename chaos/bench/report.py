"""The page that `make bench` writes. Pure, but for asking what this machine and its programs are."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version

import psutil

from chaos.bench.context import Context
from chaos.bench.figures import table
from chaos.bench.targets import ELSEWHERE, TARGETS

__all__ = ["report"]

_INTRODUCTION = """\
# Benchmarks: quarterdeck beside etcd

Written by `make bench`; every number is of this one run, both systems on the same machine, taking turns (A B B A).
Medians; in parentheses the smallest and largest of the rounds or trials. The load generator shares the two
systems' processors. Three members each, loopback, fsync on, no TLS, etcd with its defaults (heartbeat 100 ms,
election 1000 ms; ours 50 ms and 500 to 1000 ms). Targets are those of the design; a row without one has none.
"""


def report(context: Context, failures: Mapping[str, str], asked: str, began_s: float, ended_s: float) -> str:
    """Markdown.

    Args:
        failures: case -> why it was not measured.
        asked: the command line.
        began_s, ended_s: wall clock.
    """
    lines = [
        _INTRODUCTION,
        f"- when: {datetime.fromtimestamp(began_s, UTC):%Y-%m-%d %H:%M} UTC, {(ended_s - began_s) / 60:.0f} minutes",
        f"- machine: {_machine()}",
        f"- versions: {_versions()}",
        f"- command: `{asked}`; that is {context.settings}",
        "",
        table(context.figures, TARGETS),
        "",
        f"Targets without a row: {'; '.join(ELSEWHERE)}.",
        "",
    ]
    if failures:
        lines += ["Not measured:", "", *(f"- {name}: {why}" for name, why in failures.items()), ""]
    if context.cautions:
        lines += ["Read with care:", "", *(f"- {caution}" for caution in context.cautions), ""]
    lines += [
        "## The machine while it was measured",
        "",
        "As each case began: the load average of the last minute, which includes the case before it, and the share of",
        "the processors that was busy in a second in which nothing was measured (both clusters idle, and whatever else",
        "the machine did). A busy machine shows here.",
        "",
        "| case | load average | busy |",
        "|---|---|---|",
        *(f"| {c.case} | {c.load_average:.1f} | {c.busy:.0%} |" for c in context.conditions),
        "",
        "## The load generator itself",
        "",
        "One process, one core. Near a whole core it may be what limits a load; in an open loop, calls that began late",
        "say the same. Latencies of an open loop count from when a call should have begun.",
        "",
        table(context.generator, {}),
        "",
    ]
    return "\n".join(lines)


def _machine() -> str:
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{os.cpu_count()} cores ({_processor()}), {memory:.0f} GiB, {platform.system()} {platform.release()}, "
        f"{platform.machine()}"
    )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else "of unknown kind"


def _versions() -> str:
    etcd = _said("etcd", "--version").split("\n")[0].removeprefix("etcd Version: ")
    commit = _said("git", "rev-parse", "--short", "HEAD").strip()
    dirty = " and changes" if commit and _said("git", "status", "--porcelain", "--untracked-files=no").strip() else ""
    return ", ".join(
        [
            f"quarterdeck {version('quarterdeck')} ({commit or 'no commit'}{dirty})",
            f"etcd {etcd}",
            f"Python {platform.python_version()}",
            *(f"{package} {version(package)}" for package in ("grpcio", "pysyncobj", "uvloop", "protobuf")),
        ]
    )


def _said(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return ""
