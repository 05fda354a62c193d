"""`qd verify`: anybody's history, judged; what is wrong with a file is told by line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from chaos.findings import Finding, Verdict
from chaos.history import Recorder
from chaos.plain import parse
from chaos.records import Header
from chaos.verify import judge_plain
from controlplane.base.clock import ManualClock
from controlplane.base.errors import ConfigError
from controlplane.cli.main import cli
from tests.unit.chaos.test_cli import write
from tests.unit.chaos.test_verdict import played

EXAMPLES = Path(__file__).parents[3] / "examples" / "histories"
REVISIONS = "shared keys: answers show the state of their revision"
SEARCH = "shared keys: some order explains every answer (search)"


def qd(*argv: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli, ["verify", *argv], input=stdin)


def op(kind: str, at: float, *, key: str = "k", outcome: str = "ok", **more: Any) -> dict[str, Any]:
    return {"process": "c1", "op": kind, "key": key, "call": at, "return": at + 0.5, "outcome": outcome, **more}


def lines(*rows: dict[str, Any]) -> list[str]:
    return [json.dumps(row) for row in rows]


def judged(*rows: dict[str, Any]) -> dict[str, Finding]:
    return {finding.rule: finding for finding in judge_plain(parse("h", lines(*rows)))}


def test_the_example_that_holds_ends_0() -> None:
    result = qd(str(EXAMPLES / "good.jsonl"))
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("verdict: PASS\n")


def test_the_planted_stale_read_is_found_by_both_opinions_and_named_by_its_line() -> None:
    path = EXAMPLES / "stale-read.jsonl"
    result = qd(str(path), "-o", "json")
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    failed = {finding["rule"]: finding["violations"] for finding in found["findings"] if finding["verdict"] == "FAIL"}
    assert set(failed) == {REVISIONS, SEARCH}
    (number,) = (
        n for n, text in enumerate(path.read_text().splitlines(), start=1)
        if '"revision": 124' in text and '"mod_revision": 115' in text
    )  # fmt: skip
    assert all(f"get #{number} of c2 (x)" in violations[0] for violations in failed.values())


def test_without_revisions_the_search_finds_it_alone() -> None:
    result = qd(str(EXAMPLES / "stale-read-no-revisions.jsonl"))
    assert result.exit_code == 1
    assert "FAIL         shared keys: some order explains every answer (search)" in result.stdout


def test_a_value_may_hold_what_ends_a_line_elsewhere() -> None:
    rows = [op("put", 0, value="a\u2028b"), op("get", 1, value="a\u2028b")]
    result = qd("-", stdin="\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    assert result.exit_code == 0, result.output


def test_a_history_comes_from_standard_input_too() -> None:
    result = qd("-", stdin="\n".join(lines(op("put", 0, value="a"), op("get", 1, value="a"))))
    assert result.exit_code == 0, result.output


def test_a_search_that_gives_up_ends_4() -> None:
    rows = [
        {"op": "put", "key": "k", "value": f"v{n}", "call": 0, "return": 100, "outcome": "ok"} for n in range(14)
    ] + [op("get", 101, value="nothing of that")]
    result = qd("-", "--steps", "1000", stdin="\n".join(lines(*rows)))
    assert result.exit_code == 4
    assert "bound" in result.stdout


def test_a_history_of_a_run_is_judged_as_it_was_then(tmp_path: Path) -> None:
    result = qd(str(write(tmp_path / "h.jsonl", played(pods_restarted=1).history())))
    assert result.exit_code == 1
    assert "no pod restarted" in result.stdout


def test_a_history_of_ours_without_a_trial_is_judged_by_the_rules_alone(tmp_path: Path) -> None:
    with Recorder(tmp_path / "h.jsonl", Header("r", "/p/", "now", []), ManualClock()):
        pass
    result = qd(str(tmp_path / "h.jsonl"))
    assert result.exit_code == 4
    assert "no acknowledged write lost" in result.stdout


def test_what_was_there_before_is_told_first() -> None:
    rows = ({"initial": {"k": "old"}}, op("get", 0, value="old"), op("cas", 1, expected="old", value="x", swapped=True))
    assert judged(*rows)[SEARCH].verdict is Verdict.PASS
    assert judged(*rows[1:])[SEARCH].verdict is Verdict.FAIL
    with_revisions = (rows[0], {**rows[1], "revision": 50}, {**rows[2], "revision": 51})
    assert {finding.verdict for finding in judged(*with_revisions).values()} == {Verdict.PASS}


def test_an_unknown_write_needs_no_return_and_may_happen_late() -> None:
    unknown = {"op": "put", "key": "k", "value": "u", "call": 0, "outcome": "unknown"}
    assert judged(unknown, op("get", 1), op("get", 2, value="u"))[SEARCH].verdict is Verdict.PASS
    assert judged(unknown, op("get", 1, value="u"), op("get", 2))[SEARCH].verdict is Verdict.FAIL


def test_where_no_answer_shows_anything_there_is_no_verdict() -> None:
    written = [op("put", n, value=str(n)) for n in range(3)]
    assert judged(*written)[SEARCH].verdict is Verdict.INCONCLUSIVE
    assert judged(op("put", 0, value="u", outcome="unknown"))[SEARCH].verdict is Verdict.INCONCLUSIVE
    assert judged(*written, op("get", 3, value="2"))[SEARCH].verdict is Verdict.PASS


def test_a_delete_that_found_nothing_met_a_key_that_was_not_there() -> None:
    put, missed = op("put", 0, value="a"), op("delete", 1, found=False)
    assert judged(missed, op("get", 2))[SEARCH].verdict is Verdict.PASS
    assert judged(put, missed)[SEARCH].verdict is Verdict.FAIL
    assert judged(put, {**missed, "found": True}, op("get", 2))[SEARCH].verdict is Verdict.PASS


def test_a_refused_write_must_not_show() -> None:
    refused = op("put", 0, value="r", outcome="fail")
    assert judged(refused, op("get", 1))[SEARCH].verdict is Verdict.PASS
    assert judged(refused, op("get", 1, value="r"))[SEARCH].verdict is Verdict.FAIL


def test_old_reads_may_be_old_where_they_say_so() -> None:
    rows = [op("put", 0, value="a", revision=1), op("put", 1, value="b", revision=2)]
    stale = op("get", 2, value="a", revision=1, mod_revision=1, version=1)
    assert Verdict.FAIL in {finding.verdict for finding in judged(*rows, stale).values()}
    assert {f.verdict for f in judged(*rows, {**stale, "stale_ok": True}).values()} == {Verdict.PASS}


def test_a_lost_write_is_found_by_revisions() -> None:
    rows = [op("put", 0, value="a", revision=5), op("get", 1, revision=5)]
    failed = {rule for rule, finding in judged(*rows).items() if finding.verdict is Verdict.FAIL}
    assert failed == {REVISIONS, SEARCH}


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("[1]", "want a JSON object"),
        ("{", "line 2: Expecting"),
        ('{"op":"put"}', "field 'outcome' is missing, want one of: ok, fail, unknown"),
        ('{"op":"increment","outcome":"ok"}', "field 'op' is 'increment', want one of: put, get, delete, cas"),
        ('{"op":"put","outcome":"ok","key":"k","value":"v"}', "field 'call' is missing"),
        ('{"op":"put","outcome":"ok","key":"k","value":"v","call":1}', "field 'return' is missing"),
        ('{"op":"put","outcome":"ok","key":"k","value":"v","call":2,"return":1}', "before 'call'"),
        ('{"op":"put","outcome":"ok","key":"k","call":1,"return":2}', "field 'value' is missing"),
        ('{"op":"put","outcome":"ok","key":7,"value":"v","call":1,"return":2}', "field 'key' is 7, want a string"),
        ('{"op":"get","outcome":"ok","key":"k","call":"now","return":2}', "field 'call' is \"now\", want seconds"),
        ('{"op":"get","outcome":"ok","key":"k","call":1,"return":2,"revison":3}', "did you mean 'revision'"),
        ('{"op":"get","outcome":"ok","key":"k","call":1,"return":2,"revision":-3}', "want a whole number"),
        ('{"op":"cas","outcome":"ok","key":"k","value":"v","call":1,"return":2}', "field 'expected' is missing"),
        (
            '{"op":"cas","outcome":"ok","key":"k","value":"v","expected":null,"call":1,"return":2}',
            "'swapped' is missing",
        ),
        ('{"initial":{"k":1}}', "'initial' must come before"),
    ],
)
def test_what_is_wrong_with_a_line_is_told_with_its_number(row: str, complaint: str) -> None:
    good = json.dumps(op("put", 0, value="a"))
    with pytest.raises(ConfigError, match="h, line 2: ") as raised:
        parse("h", [good, row])
    assert complaint in str(raised.value)


def test_a_file_without_operations_is_refused(tmp_path: Path) -> None:
    (tmp_path / "h").write_text("# nothing\n\n")
    result = qd(str(tmp_path / "h"))
    assert result.exit_code == 2
    assert "has no operations" in result.stderr
