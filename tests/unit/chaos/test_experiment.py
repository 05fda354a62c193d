"""Files are read as Chaos Toolkit writes them, and refused with the file, the field and the nearest name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from chaos.experiment import FOLDER, names, parse, read
from chaos.steps import catalogue
from controlplane.base.errors import ConfigError

KNOWN = catalogue()
RAW: dict[str, Any] = {
    "title": "a leader dies",
    "description": "and another leads",
    "configuration": {"who": "leader", "home": {"type": "env", "key": "NO_SUCH_VARIABLE", "default": "r1"}},
    "steady-state-hypothesis": {
        "title": "it serves",
        "probes": [
            {
                "type": "probe",
                "name": "serves",
                "tolerance": True,
                "provider": {"type": "python", "module": "chaos.ctk.probes", "func": "all_replicas_serve"},
            }
        ],
    },
    "method": [
        {
            "type": "action",
            "name": "kill",
            "provider": {
                "type": "python",
                "module": "chaos.ctk.actions",
                "func": "kill",
                "arguments": {"target": "${who}", "for_s": 2},
            },
            "pauses": {"before": 1, "after": 0.5},
            "background": True,
        },
        {
            "type": "action",
            "name": "more",
            "provider": {
                "type": "python",
                "module": "chaos.ctk.actions",
                "func": "random_faults",
                "arguments": {
                    "duration_s": 20,
                    "every_s": [1, 2],
                    "at_most": 2,
                    "faults": [{"fault": "pause", "target": "replica", "for_s": 1, "weight": 2}, {"fault": "kill"}],
                },
            },
        },
    ],
    "rollbacks": [],
    "extensions": [
        {"name": "somebody-else"},
        {"name": "quarterdeck", "budgets": {"write_gap_s": 2}, "workload": ["kv"], "allow-quorum-loss": True},
    ],
}


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    raw = copy.deepcopy(RAW)
    change(raw)
    return raw


def test_everything_in_a_file_is_read() -> None:
    found = parse(RAW, "mine", "mine.yaml", KNOWN)
    activity, _ = found.method
    assert activity.arguments == {"target": "leader", "for_s": 2}
    assert (activity.before_s, activity.after_s, activity.background) == (1.0, 0.5, True)
    assert found.schedule is not None
    assert [(c.fault, c.target, c.for_s) for c in found.schedule.faults] == [
        ("pause", "replica", (1.0, 1.0)),
        ("kill", "leader", (1.0, 3.0)),
    ]
    assert found.settings.budgets == {"write_gap_s": 2}
    assert found.settings.allow_quorum_loss
    assert found.settings.workload == ("kv",)


def _provider(raw: dict[str, Any]) -> dict[str, Any]:
    provider: dict[str, Any] = raw["method"][0]["provider"]
    return provider


def _schedule(raw: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = raw["method"][1]["provider"]["arguments"]
    return found


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda raw: raw.update(metod=[]), "metod: unknown field; did you mean 'method'"),
        (lambda raw: raw.pop("title"), "title: is missing"),
        (lambda raw: raw.update(method={}), "method: want a list, not a mapping"),
        (lambda raw: raw.update(method=[]), "nothing would be done"),
        (lambda raw: raw.update(schedule={}), "schedule: is the action random_faults of the method"),
        (lambda raw: raw["method"].append(raw["method"][1]), r"method\[2\]: is the second random_faults"),
        (lambda raw: _schedule(raw).pop("faults"), r"method\[1\].provider.arguments.faults: is missing"),
        (lambda raw: raw["method"][0].update(type="act"), r"method\[0\].type: 'act': want action or probe"),
        (
            lambda raw: _provider(raw).update(func="kil"),
            r"method\[0\].provider.func: 'kil': unknown; did you mean 'kill'",
        ),
        (
            lambda raw: _provider(raw).update(module="os"),
            r"method\[0\].provider.module: 'os': want chaos.ctk.actions or",
        ),
        (lambda raw: _provider(raw).update(type="process"), r"method\[0\].provider.type: 'process': only python"),
        (
            lambda raw: _provider(raw)["arguments"].update(target="leeder"),
            r"arguments.target: target 'leeder': unknown; did you mean 'leader'",
        ),
        (lambda raw: _provider(raw)["arguments"].update(tarket="r1"), "no such argument; did you mean 'target'"),
        (lambda raw: _provider(raw)["arguments"].update(target="${whom}"), r"not in configuration; did you mean 'who'"),
        (lambda raw: _provider(raw)["arguments"].update(for_s="long"), "for_s: 'long': want a number"),
        (lambda raw: _provider(raw)["arguments"].update(mode="few"), "mode: 'few': want one of one, all, fixed"),
        (
            lambda raw: raw["steady-state-hypothesis"]["probes"][0].pop("tolerance"),
            r"steady-state-hypothesis.probes\[0\].tolerance: is missing",
        ),
        (lambda raw: _schedule(raw).update(every_s=[3, 1]), r"arguments.every_s: \[3, 1\]: the first is the shortest"),
        (lambda raw: _schedule(raw).update(at_most=0), "arguments.at_most: 0: want a whole number from 1"),
        (
            lambda raw: _schedule(raw)["faults"][0].update(fault="pauze"),
            r"arguments.faults\[0\].fault: 'pauze': unknown; did you mean 'pause'",
        ),
        (
            lambda raw: raw["extensions"][1]["budgets"].update(write_gap_s="soon"),
            r"extensions\[1\].budgets: budget write_gap_s is 'soon', must be a number",
        ),
        (
            lambda raw: raw["extensions"][1]["budgets"].update(write_gap=1),
            r"extensions\[1\].budgets.write_gap: unknown field; did you mean 'write_gap_s'",
        ),
        (lambda raw: raw["extensions"][1].update(workload=["htpp"]), "'htpp': unknown; did you mean 'http'"),
        (lambda raw: raw["extensions"][1].update({"allow-quorum-loss": "yes"}), "'yes': want true or false"),
        (lambda raw: raw["configuration"]["home"].pop("default"), "the environment has no NO_SUCH_VARIABLE"),
    ],
)
def test_what_is_wrong_is_refused_by_its_place(change: Callable[[dict[str, Any]], object], says: str) -> None:
    with pytest.raises(ConfigError, match=says) as refused:
        parse(changed(change), "mine", "mine.yaml", KNOWN)
    assert str(refused.value).startswith("mine.yaml: ")


def test_a_file_that_is_not_there_or_no_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read(str(tmp_path / "none.yaml"), KNOWN)
    (tmp_path / "bad.yaml").write_text("title: [")
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        read(str(tmp_path / "bad.yaml"), KNOWN)
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(ConfigError, match="want a mapping, not a list"):
        read(str(tmp_path / "list.json"), KNOWN)


@pytest.mark.parametrize("text", ["#" * 2_000_000, "[" * 100_000])
def test_a_file_without_bounds_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "big.json").write_text(text)
    with pytest.raises(ConfigError, match=r"big\.json"):
        read(str(tmp_path / "big.json"), KNOWN)


@pytest.mark.parametrize("name", names())
def test_every_experiment_that_comes_along_is_one(name: str) -> None:
    found = read(name, KNOWN)
    assert found.tags
    assert found.hypothesis
    assert read(str(FOLDER / f"{name}.yaml"), KNOWN) == found


@pytest.mark.parametrize("name", names())
def test_every_experiment_that_comes_along_is_chaos_toolkits_too(name: str) -> None:
    from chaoslib.experiment import ensure_experiment_is_valid

    ensure_experiment_is_valid(yaml.safe_load((FOLDER / f"{name}.yaml").read_text()))


def test_a_billion_laughs_are_refused_before_anything_is_made_of_them(tmp_path: Path) -> None:
    text = "title: &a0 [x, x]\n" + "".join(f"x{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
    path = tmp_path / "laughs.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"(?s)laughs.yaml: aliases stand for more than 100000 values.*line"):
        read(str(path), KNOWN)
