"""Shell completion: prints the script that click makes for bash, zsh and fish."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

__all__ = ["completion"]


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    Bash: qd completion bash > ~/.local/share/bash-completion/completions/qd
    Zsh:  qd completion zsh > a folder of $fpath, as _qd
    Fish: qd completion fish > ~/.config/fish/completions/qd.fish
    """
    from controlplane.cli.main import cli

    maker = get_completion_class(shell)
    assert maker is not None  # the choice of shells is click's own
    click.echo(maker(cli, {}, "qd", "_QD_COMPLETE").source())
