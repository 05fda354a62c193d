"""docs/transcripts.md: what the generator writes, of every command of etcdctl, with nothing of one machine in it."""

from __future__ import annotations

import re
from pathlib import Path

from tests.clients.transcripts import PLAIN, SECTIONS, Names
from tests.integration.test_etcdctl import COVERED

_PAGE = Path(__file__).parents[2] / "docs" / "transcripts.md"


def test_ports_and_ids_are_shown_by_name_and_a_word_keeps_its_name() -> None:
    names = Names(24_000)
    names.call("1ca9e4de05ea418f", "ID-r1")
    assert names.real("etcdctl --endpoints=https://127.0.0.1:7410") == "etcdctl --endpoints=https://127.0.0.1:24010"
    assert names.shown("1ca9e4de05ea418f at 127.0.0.1:24012") == "ID-r1 at 127.0.0.1:7412"
    lease = "lease 694d9f0a1b2c3d4e granted"
    assert names.shown(lease) == names.shown(lease) == "lease ID-2 granted"
    assert names.shown("lease 694d9f0a1b2c3d4f granted") == "lease ID-3 granted"


def test_the_columns_of_a_table_stay_where_they_are() -> None:
    names = Names(24_000)
    names.call("1ca9e4de05ea418f", "ID-r1")
    row = "| https://127.0.0.1:24010 | 1ca9e4de05ea418f |  3.5.17 |"
    assert names.shown(row) == "| https://127.0.0.1:7410  | ID-r1            |  3.5.17 |"


def test_times_logs_and_progress_under_way_are_left_out() -> None:
    names = Names(7_400)
    assert names.shown("is healthy: took = 4.906713ms") == "is healthy: took = …"
    assert names.shown('{"level":"warn","ts":1}\nError: no\n') == "Error: no"
    bar = " 0 / 60    0.00%\n 59 / 60   98.33% 00m01s\n 60 / 60  100.00% 1m0s\nPASS\n"
    assert names.shown(bar) == " 60 / 60  100.00% 1m0s\nPASS"


def test_the_page_has_every_command_that_the_generator_runs() -> None:
    page = _PAGE.read_text()
    commands = [step if isinstance(step, str) else step[0] for section in (*SECTIONS, PLAIN) for step in section.steps]
    missing = [command for command in commands if f"\n$ {command}\n" not in page]
    assert missing == [], "run make transcripts"


def test_every_command_of_etcdctl_is_on_the_page() -> None:
    shown = " ".join(line for line in _PAGE.read_text().splitlines() if line.startswith("$ "))
    shown = re.sub(r" (-\S+|\$\w+)", "", shown)
    missing = [command for command in COVERED if command.partition(" ")[0] != "completion" and command not in shown]
    assert missing == []
    assert "etcdctl completion" in shown


def test_the_page_names_no_folder_and_no_port_of_one_machine() -> None:
    page = _PAGE.read_text()
    assert not re.search(r"/(tmp|home|root|work|usr)/", page)
    assert set(re.findall(r"127\.0\.0\.1:(\d\d)", page)) <= {"74"}
    assert not re.search(r"\b[0-9a-f]{15,16}\b", page)
