"""Shell completion: prints the script that click makes for bash, zsh and fish."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from controlplane.cli.common import EXIT_USAGE, fail

__all__ = ["completion"]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL.

    Bash: qd completion bash > ~/.local/share/bash-completion/completions/qd
    """
    from controlplane.cli.main import cli

    maker = get_completion_class(shell)
    if maker is None:
        fail(f"no completion for {shell}", EXIT_USAGE)
    click.echo(maker(cli, {}, "qd", "_QD_COMPLETE").source())
