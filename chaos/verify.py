"""``qd verify``: judge a recorded history, ours or anybody's, from the file alone.

Exit codes: 0 every invariant held, 1 one was broken, 2 the file is no history, 4 too little happened to tell.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from chaos.checkers import Lineage, check_all
from chaos.checkers.log import Log
from chaos.checkers.registers import check_registers
from chaos.checkers.search import check_by_search
from chaos.findings import Finding, Verdict, worst
from chaos.history import load
from chaos.plain import parse
from chaos.records import History
from chaos.report import as_dict, render, render_repeats
from chaos.report.text import findings_as_dicts, line
from chaos.verdict import judge_history
from controlplane.base.errors import ConfigError
from controlplane.cli.common import coroutine
from controlplane.cli.options import output_option

__all__ = ["judge_plain", "verify"]

EXIT_CODES: Final = {Verdict.PASS: 0, Verdict.FAIL: 1, Verdict.INCONCLUSIVE: 4}
_STEPS: Final = 2_000_000


@click.command()
@click.argument("history", type=click.Path(exists=True, dir_okay=False, path_type=Path, allow_dash=True))
@output_option
@click.option(
    "--steps",
    default=_STEPS,
    show_default=True,
    type=click.IntRange(min=1),
    help="How much the search may work, in all. Beyond it there is no verdict; a step takes some microseconds.",
)
@click.pass_context
@coroutine
async def verify(context: click.Context, history: Path, output: str, steps: int) -> None:
    """Judge a recorded history from the file alone; - is standard input.

    A history of a chaos run is judged as it was then, by its own budgets. Any other file must hold one operation a
    line, as docs/verdicts.md says:

    \b
    {"op":"put","key":"k","value":"v","call":0.1,"return":0.2,"outcome":"ok"}

    With the store's revisions in every answer, they are used, and a search that does not trust them is the second
    opinion; without, the search is the only one.
    """
    if _is_ours(history):
        found = load(history)
        report = judge_history(found)
        if report.acts:
            click.echo(json.dumps(as_dict(report), indent=2) if output == "json" else render(report))
            if output == "table" and any(act.n > 1 for act in report.acts):
                click.echo(f"\n{render_repeats(report.acts)}")
            context.exit(EXIT_CODES[report.verdict])
        findings, operations = check_all(found), len(found.ops)
    else:
        plain = parse(str(history), _lines(history))
        findings, operations = judge_plain(plain, steps_max=steps), len(plain.ops)
    _show(findings, operations, output)
    context.exit(EXIT_CODES[worst(finding.verdict for finding in findings)])


def judge_plain(history: History, *, steps_max: int = _STEPS) -> list[Finding]:
    """The findings of anybody's history: by revisions if every answer has one, and by search."""
    answered = [op for op in history.ops if op.outcome == "ok"]
    with_revision = sum(1 for op in answered if op.revision)
    if answered and with_revision == len(answered):
        log = Log(history, Lineage())
        return [*check_registers(log), *check_by_search(history, steps_max=steps_max)]
    return check_by_search(history, whole=True, steps_max=steps_max)


def _is_ours(path: Path) -> bool:
    if str(path) == "-":
        return False
    with path.open("rb") as file:
        return file.readline(65_536).lstrip().startswith(b'{"t":"header"')


def _lines(path: Path) -> Sequence[str]:
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    # Not splitlines: a JSON text may hold other characters that end a line, and only this one ends ours.
    return text.split("\n")


def _show(findings: Sequence[Finding], operations: int, output: str) -> None:
    verdict = worst(finding.verdict for finding in findings)
    if output == "json":
        said = {"verdict": verdict.value, "operations": operations, "findings": findings_as_dicts(findings)}
        click.echo(json.dumps(said, indent=2))
        return
    for finding in findings:
        click.echo(line(finding))
    click.echo(f"\n{operations} operations\nverdict: {verdict.value}")
