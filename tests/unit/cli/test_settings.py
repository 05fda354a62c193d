"""Where a command finds its cluster, and what it says when there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from controlplane.base.errors import ConfigError
from controlplane.cli.common import Settings, find_folder
from controlplane.cli.main import cli
from controlplane.local.cluster import LocalCluster
from controlplane.local.spec import plan

HEAVY = ("grpc", "google.protobuf", "rich", "aiohttp", "numpy", "yaml", "controlplane.pb", "controlplane.client")


def invoke(*words: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    result = CliRunner(env=env or {}).invoke(cli, list(words), prog_name="qd")
    return result.exit_code, result.stderr


def test_without_a_cluster_the_message_says_how_to_start_one() -> None:
    code, said = invoke("get", "pods")
    assert code == 2
    assert "make cluster" in said
    assert "--endpoints" in said


def test_a_folder_named_but_empty_is_named(tmp_path: Path) -> None:
    code, said = invoke("--folder", str(tmp_path / "x"), "get", "pods")
    assert code == 2
    assert str(tmp_path / "x") in said


@pytest.mark.parametrize("word", ["nonsense", "host:", "host:99999", ":7410", "a:1,b"])
def test_a_malformed_endpoint_is_wrong_usage(word: str) -> None:
    code, said = invoke("--endpoints", word, "get", "pods")
    assert code == 2
    assert "host:port" in said


def test_the_nearest_folder_above_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LocalCluster.create(tmp_path / ".quarterdeck", plan(replicas=3, nodes=0, port_base=7400))
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert find_folder() == tmp_path / ".quarterdeck"
    assert Settings().resolve_endpoints() == ["127.0.0.1:7410", "127.0.0.1:7420", "127.0.0.1:7430"]
    assert Settings(endpoints=("h:1",)).resolve_endpoints() == ["h:1"]


def test_endpoints_and_folder_come_from_the_environment_too(tmp_path: Path) -> None:
    code, said = invoke("get", "pods", env={"QD_ENDPOINTS": "nonsense"})
    assert (code, "'nonsense'" in said) == (2, True)
    code, said = invoke("get", "pods", env={"QD_FOLDER": str(tmp_path / "there")})
    assert (code, str(tmp_path / "there") in said) == (2, True)


def test_a_damaged_cluster_file_says_what_to_do(tmp_path: Path) -> None:
    root = tmp_path / ".quarterdeck"
    root.mkdir()
    (root / "cluster.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        Settings().resolve_endpoints()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_program_and_its_variable(shell: str) -> None:
    result = CliRunner().invoke(cli, ["completion", shell], prog_name="qd")
    assert result.exit_code == 0
    assert "_QD_COMPLETE" in result.stdout
    assert "qd" in result.stdout


def test_other_shells_are_refused() -> None:
    assert invoke("completion", "tcsh")[0] == 2


def test_completion_offers_commands_and_kinds() -> None:
    def complete(words: str, at: str) -> str:
        env = {"_QD_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": at}
        return CliRunner(env=env).invoke(cli, prog_name="qd").stdout

    assert "plain,cordon" in complete("qd cor", "1")
    assert "plain,deployments" in complete("qd get depl", "2")


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom controlplane.cli.main import main\nsys.argv = ['qd', '--help']\n"
        f"try:\n    main()\nfinally:\n    print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert done.stderr == "[]\n"
    for word in ("get", "apply", "rollout", "snapshot", "local", "chaos", "api-resources"):
        assert f"\n  {word} " in done.stdout


def test_an_ordinary_command_does_without_the_web_server_and_the_scheduler_arrays() -> None:
    program = (
        "import sys\nimport controlplane.cli.get, controlplane.cli.write, controlplane.cli.status\n"
        "print([m for m in ('aiohttp', 'numpy', 'pysyncobj', 'uvloop') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "command",
    [
        "get", "describe", "apply", "delete", "scale", "rollout", "logs", "events", "cordon", "uncordon", "drain",
        "status", "snapshot", "local", "completion", "api-resources",
    ],
)  # fmt: skip
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(cli, [command, "-h"], prog_name="qd")
    assert result.exit_code == 0
    assert result.stdout.startswith(f"Usage: qd {command}")


def test_the_version_is_told() -> None:
    assert CliRunner().invoke(cli, ["--version"]).stdout.startswith("quarterdeck, version ")


def test_the_environment_of_these_tests_names_no_cluster() -> None:
    assert "QD_ENDPOINTS" not in os.environ
