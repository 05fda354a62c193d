"""``qd`` as a shell runs it, on the folder of a test."""

from __future__ import annotations

from click.testing import CliRunner, Result

from controlplane.cli.main import cli

__all__ = ["PORT_BASE", "SHAPE", "qd"]

PORT_BASE = 23400
#: The plan of the ``cluster`` fixture.
SHAPE = ("--replicas", "1", "--nodes", "1", "--port-base", str(PORT_BASE))


def qd(*words: str, stdin: str = "") -> Result:
    """What it printed, and its exit code; a bug in it is raised."""
    result = CliRunner().invoke(cli, list(words), prog_name="qd", input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result
