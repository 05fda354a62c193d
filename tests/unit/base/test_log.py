"""The form of a log line, and who is heard."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator

import pytest

from controlplane.base.log import LEVELS, setup_logging


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("quarterdeck")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:], root.level, ours.level = before
    logging.captureWarnings(capture=False)


def test_a_line_has_time_in_utc_level_part_and_message(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging()
    record = logging.LogRecord("quarterdeck.raft", logging.WARNING, "f.py", 1, "event=%s", ("lost",), None)
    record.created, record.msecs = 1_700_000_000.25, 250.0
    logging.getLogger("quarterdeck.raft").handle(record)
    assert capsys.readouterr() == ("", "2023-11-14T22:13:20.250Z W quarterdeck.raft event=lost\n")


def test_an_exception_follows_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging()
    try:
        raise ValueError("broken")
    except ValueError as error:
        logging.getLogger("quarterdeck.app").error("event=failed", exc_info=error)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith(" E quarterdeck.app event=failed")
    assert lines[-1] == "ValueError: broken"


@pytest.mark.parametrize("level", LEVELS)
def test_the_level_is_of_our_own_loggers(level: str, capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(level)
    for name in LEVELS:
        logging.getLogger("quarterdeck.x").log(getattr(logging, name.upper()), "ours=%s", name)
        logging.getLogger("library").log(getattr(logging, name.upper()), "theirs=%s", name)
    text = capsys.readouterr().err
    assert re.findall(r"ours=(\w+)", text) == list(LEVELS[LEVELS.index(level) :])
    assert re.findall(r"theirs=(\w+)", text) == ["warning", "error"]


def test_a_second_set_up_does_not_double_the_lines(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging()
    setup_logging()
    logging.getLogger("quarterdeck.x").info("once")
    assert capsys.readouterr().err.count("once") == 1


def test_warnings_of_libraries_are_logged(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        # captureWarnings replaced what shows a warning; catch_warnings does not undo that within.
        warnings.warn("old habit", DeprecationWarning, stacklevel=1)
    assert "W py.warnings" in capsys.readouterr().err
