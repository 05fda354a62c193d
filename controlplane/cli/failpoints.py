"""``qd failpoints``: the places where a test can make a replica die or its disk refuse."""

from __future__ import annotations

import click

from controlplane.base.failpoints import FAILPOINTS, VARIABLE

__all__ = ["failpoints"]


@click.command()
def failpoints() -> None:
    """List the failpoints, for tests. A replica started with them armed fails on purpose."""
    width = max(map(len, FAILPOINTS))
    for name, moment in FAILPOINTS.items():
        click.echo(f"{name:<{width}}  {moment}")
    click.echo(f'\nArm them in the environment of one replica: {VARIABLE}="NAME=kill@3,NAME=error:EIO"')
