"""The state directory of an agent says of which format it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from controlplane.base.errors import ConfigError
from node.layout import FORMAT_VERSION, Layout


def test_a_new_directory_says_its_format_and_one_of_version_0_1_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "pods" / "uid-1").mkdir(parents=True)
    layout = Layout(tmp_path)
    layout.prepare()
    assert json.loads((tmp_path / "format.json").read_text()) == {"version": FORMAT_VERSION}
    assert layout.pod_uids() == ["uid-1"]
    layout.prepare()


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, "two"])
def test_what_a_newer_agent_left_is_refused(tmp_path: Path, version: object) -> None:
    (tmp_path / "format.json").write_text(json.dumps({"version": version}))
    with pytest.raises(
        ConfigError, match=rf"format\.json: format version {version}, this agent reads up to 1; start the"
    ):
        Layout(tmp_path).prepare()
    assert not (tmp_path / "pods").exists()
