"""``qd certs``: a certificate authority for a cluster, and certificates for its members, nodes and users."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path

import click

from controlplane.base import identity
from controlplane.base.clock import SystemClock
from controlplane.base.pki import CA_DAYS, LEAF_DAYS, Certificate
from controlplane.cli.common import coroutine, err, find_folder, settings_of
from controlplane.cli.options import output_option
from controlplane.cli.tables import table
from controlplane.local.pki import FOLDER, Issued, Pki

__all__ = ["certs"]

_days = click.option("--days", default=LEAF_DAYS, show_default=True, help="How long it is valid.")
_names = click.option(
    "--address",
    "-a",
    "addresses",
    multiple=True,
    metavar="HOST",
    help="A name or address it has; repeatable.",
)


@click.group()
@click.option(
    "--pki",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder of the certificates. Default: that of the local cluster here, or ./pki.",
)
@click.pass_context
def certs(context: click.Context, pki: Path | None) -> None:
    """Make, renew and look at the certificates of members, nodes and users. Renewed ones are taken up by running
    processes within seconds, without a restart."""
    if pki is None:
        cluster = settings_of(context).folder or find_folder()
        pki = cluster / FOLDER if cluster is not None else Path(FOLDER)
    context.meta[__name__] = Pki(pki)


def _pki(context: click.Context) -> Pki:
    found: Pki = context.meta[__name__]
    return found


@certs.command()
@click.option("--days", default=CA_DAYS, show_default=True, help="How long the authority is valid.")
@click.option("--force", is_flag=True, help="Replace an authority: nobody it certified gets in any more.")
@click.pass_context
@coroutine
async def init(context: click.Context, days: int, force: bool) -> None:
    """Make a certificate authority, and the administrator's certificate."""
    made = Pki.create(_pki(context).folder, days=days, force=force)
    _print(made.all())
    err.print(f"keep {made.folder / 'ca.key'} safe: who has it may make an administrator's certificate")


@certs.group()
def issue() -> None:
    """Make a certificate; one of that name is replaced."""


@issue.command()
@click.argument("name")
@_names
@_days
@click.pass_context
@coroutine
async def member(context: click.Context, name: str, addresses: tuple[str, ...], days: int) -> None:
    """For a replica: it serves under NAME, localhost and each --address, and speaks to its peers."""
    _print([_pki(context).issue(identity.member(name), _served(name, addresses), days=days)])


@issue.command()
@click.argument("name")
@_names
@_days
@click.pass_context
@coroutine
async def node(context: click.Context, name: str, addresses: tuple[str, ...], days: int) -> None:
    """For a node agent: it may hold the session of node NAME, and of no other."""
    _print([_pki(context).issue(identity.node(name), _served(name, addresses), days=days)])


@issue.command()
@click.argument("name")
@click.option("--group", "-g", "groups", multiple=True, help=f"A group of the user; {identity.ADMINS} may do anything.")
@_days
@click.pass_context
@coroutine
async def user(context: click.Context, name: str, groups: tuple[str, ...], days: int) -> None:
    """For a person or a program. Once etcd's auth is enabled, NAME is the etcd user."""
    _print([_pki(context).issue(identity.user(name, groups), days=days)])


@certs.command()
@click.argument("names", nargs=-1)
@_days
@click.pass_context
@coroutine
async def renew(context: click.Context, names: tuple[str, ...], days: int) -> None:
    """Renew the certificates of NAMES (r1, node-1, admin), or all of them, with new keys."""
    pki = _pki(context)
    leaves = [issued for issued in pki.all() if not issued.certificate.is_authority]
    unknown = set(names) - {issued.path.stem for issued in leaves}
    if unknown:
        raise click.UsageError(
            f"no certificate of {', '.join(sorted(unknown))} in {pki.folder}; `qd certs show` lists them"
        )
    _print([pki.renew(issued.path, days=days) for issued in leaves if not names or issued.path.stem in names])


@certs.command()
@output_option
@click.pass_context
@coroutine
async def show(context: click.Context, output: str) -> None:
    """List the certificates, and when they end. Exit code 1 when one has, or there is none."""
    found = _pki(context).all()
    if not found:
        err.print(f"no certificates in {_pki(context).folder}; make them with: qd certs init")
        context.exit(1)
    if output == "json":
        click.echo(json.dumps([_as_dict(issued) for issued in found], indent=2))
    else:
        _print(found)
    if any(issued.certificate.not_after_s <= SystemClock().wall_ms() / 1000 for issued in found):
        context.exit(1)


def _as_dict(issued: Issued) -> dict[str, object]:
    certificate = issued.certificate
    return {
        "who": _who(certificate),
        "not_after": dt.datetime.fromtimestamp(certificate.not_after_s, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "seconds_left": int(certificate.not_after_s - SystemClock().wall_ms() / 1000),
        "serial": f"{certificate.serial:x}",
        "names": list(certificate.names),
        "groups": list(certificate.organizations),
        "file": str(issued.path),
    }


def _who(certificate: Certificate) -> str:
    return "authority" if certificate.is_authority else str(certificate.identity)


def _served(name: str, addresses: tuple[str, ...]) -> list[str]:
    return list(dict.fromkeys([name, "localhost", *(addresses or ("127.0.0.1",))]))


def _print(found: list[Issued]) -> None:
    now_s = SystemClock().wall_ms() / 1000
    rows = []
    for issued in found:
        certificate = issued.certificate
        left_s = certificate.not_after_s - now_s
        ends = dt.datetime.fromtimestamp(certificate.not_after_s, dt.UTC).strftime("%Y-%m-%d %H:%M")
        left = "EXPIRED" if left_s <= 0 else f"{left_s / 86_400:.0f}d"
        names = ",".join(certificate.names) or ",".join(certificate.organizations) or "-"
        rows.append([_who(certificate), ends, left, f"{certificate.serial:x}"[:16], names, str(issued.path)])
    click.echo(table(["WHO", "ENDS (UTC)", "LEFT", "SERIAL", "NAMES OR GROUPS", "FILE"], rows))
