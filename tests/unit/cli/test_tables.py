"""Tables, ages, durations, and the words for kinds: pure text."""

from __future__ import annotations

import click
import pytest

from controlplane.base.errors import ConfigError
from controlplane.cli.kinds import KindType, kind_of, label_of, targets
from controlplane.cli.options import Seconds
from controlplane.cli.tables import Table, age, table


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0s"), (0, "0s"), (59.9, "59s"), (119, "119s"), (120, "2m"), (192, "3m12s"), (600, "10m"),
        (10_799, "179m"), (10_800, "3h"),
        (18_420, "5h7m"), (28_800, "8h"), (172_799, "47h"), (172_800, "2d"), (183_600, "2d3h"),
        (691_200, "8d"), (62_985_600, "729d"), (63_072_000, "2y"), (64_800_000, "2y20d"), (300_000_000, "9y"),
    ],
)  # fmt: skip
def test_ages_are_kubectls(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_columns_are_as_wide_as_their_widest_cell_and_nothing_trails() -> None:
    assert table(["NAME", "X"], [["a", "1"], ["longer", ""]]) == "NAME     X\na        1\nlonger"


def test_rows_added_later_stay_under_the_columns_and_the_headings_come_once() -> None:
    growing = Table(["NAME", "STATUS"])
    assert growing.add([["long-name", "Pending"]]) == "NAME        STATUS\nlong-name   Pending"
    assert growing.add([["a", "Running"]]) == "a           Running"


def test_without_headings_only_cells_make_the_width() -> None:
    assert Table(["NAMESPACE", "X"], headings_shown=False).add([["a", "1"]]) == "a   1"


@pytest.mark.parametrize(("word", "seconds"), [("90", 90), ("1.5", 1.5), ("90s", 90), ("1m30s", 90), ("500ms", 0.5)])
def test_durations_are_seconds_or_kubectls(word: str, seconds: float) -> None:
    assert Seconds().convert(word, None, None) == seconds


@pytest.mark.parametrize("word", ["", "x", "5x", "5s5", "-3s", "s"])
def test_other_durations_are_wrong_usage(word: str) -> None:
    with pytest.raises(click.UsageError, match="1m30s"):
        Seconds().convert(word, None, None)


@pytest.mark.parametrize("word", ["deployments", "deployment", "deploy", "Deployment", "deployment.apps"])
def test_a_kind_has_many_words(word: str) -> None:
    assert label_of(kind_of(word), "web") == "deployment.apps/web"


def test_targets_come_as_kind_and_names_or_as_pairs() -> None:
    pods, services = kind_of("po"), kind_of("svc")
    assert targets(["pods", "a", "b", "a"]) == [(pods, "a"), (pods, "b")]
    assert targets(["pod/a", "svc/b"]) == [(pods, "a"), (services, "b")]
    assert targets(["pods,services,po"]) == [(pods, ""), (services, "")]
    assert [info.resource for info, _ in targets(["all"])] == ["pods", "services", "deployments", "replicasets"]


@pytest.mark.parametrize("words", [[], ["pod/"], ["pod/a", "b"], ["podd"]])
def test_other_targets_are_refused(words: list[str]) -> None:
    with pytest.raises(ConfigError):
        targets(words)


def test_kinds_complete() -> None:
    argument = click.Argument(["what"])
    items = KindType().shell_complete(click.Context(click.Command("get")), argument, "dep")
    assert [item.value for item in items] == [
        "deploy",
        "deployment",
        "deployment.apps",
        "deployments",
        "deployments.apps",
    ]
