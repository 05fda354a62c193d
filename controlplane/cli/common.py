"""What every command shares: where the cluster is, how coroutines run, how errors end the program."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import IO, Any, NoReturn, ParamSpec, Protocol, TypeVar

import click
from rich.console import Console

from controlplane.base.errors import ConfigError, QuarterdeckError
from controlplane.client import ApiClient, ApiError, GrpcClient, UnavailableError
from controlplane.client.endpoints import parse_endpoints
from controlplane.local.cluster import FOLDER, LocalCluster
from controlplane.pb.quarterdeck.v1 import api_pb2
from controlplane.transport.tls import Reloader, TlsFiles

__all__ = [
    "EXIT_INTERRUPTED",
    "EXIT_REFUSED",
    "EXIT_UNREACHABLE",
    "EXIT_USAGE",
    "Client",
    "CommandError",
    "Settings",
    "api_error_text",
    "coroutine",
    "err",
    "fail",
    "find_folder",
    "settings_of",
]

EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_INTERRUPTED = 130

#: Messages and progress: standard error, so that standard output can be piped. Text is printed as it is: a path or
#: an address may hold brackets and colons.
err = Console(stderr=True, highlight=False, soft_wrap=True, markup=False, emoji=False)

P = ParamSpec("P")
T = TypeVar("T")


class Client(ApiClient, Protocol):
    """The client of a command: the resource API, logs, and an end."""

    def logs(self, request: api_pb2.LogsRequest) -> AsyncIterator[bytes]:
        """A container's log, in pieces."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


class CommandError(click.ClickException):
    """The command ends with this message, as it is, on standard error, and this exit code."""

    def __init__(self, message: str, code: int = EXIT_REFUSED) -> None:
        super().__init__(message)
        # click types it as the class's, and reads it of the error.
        self.exit_code = code  # type: ignore[misc]

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message."""
        click.echo(self.message, file=file, err=True)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the options before the sub-command said, and how to connect.

    Attributes:
        endpoints: as given; empty: those of the local cluster.
        folder: the local cluster's folder as given; None: the nearest.
        tls: certificate files as given; None: the administrator's of the local cluster, where it has TLS.
        connect: makes a client of endpoints, in place of a GrpcClient.
    """

    endpoints: tuple[str, ...] = ()
    folder: Path | None = None
    tls: TlsFiles | None = None
    connect: Callable[[Sequence[str]], Client] | None = None

    def resolve_endpoints(self) -> list[str]:
        """Endpoints given, or of the environment, or of the local cluster found here.

        Raises:
            ConfigError: there is none of these, or one is not HOST:PORT; says what to do.
        """
        if self.endpoints:
            return parse_endpoints(",".join(self.endpoints))
        if self.folder is not None:
            return LocalCluster.open(self.folder).spec.endpoints
        folder = find_folder()
        if folder is not None:
            return LocalCluster.open(folder).spec.endpoints
        raise ConfigError(
            f"no cluster: no {FOLDER} in this folder or above it. Start one with `make cluster` (or `qd local up`), "
            "or name one: --endpoints HOST:PORT,HOST:PORT or QD_ENDPOINTS"
        )

    def client(self) -> Client:
        """A client of that cluster; close it when done."""
        endpoints = self.resolve_endpoints()
        if self.connect is not None:
            return self.connect(endpoints)
        return GrpcClient(endpoints, credentials=self.credentials())

    def credentials(self) -> Reloader | None:
        """What to show to the endpoints; None: they are spoken to plainly. Raises ConfigError: files are no good."""
        files = self.tls_files()
        return Reloader(files) if files is not None else None

    def tls_files(self) -> TlsFiles | None:
        """The certificate files given, or the administrator's of the local cluster that the endpoints belong to."""
        if self.tls is not None:
            return self.tls
        folder = self.folder or find_folder()
        if folder is None or not LocalCluster.exists(folder):
            return None
        cluster = LocalCluster.open(folder)
        theirs = not self.endpoints or set(self.resolve_endpoints()) <= set(cluster.spec.endpoints)
        return cluster.pki.admin if cluster.spec.tls and theirs else None

    def local(self) -> LocalCluster:
        """The local cluster of the folder. Raises ConfigError if there is none."""
        return LocalCluster.open(self.folder or find_folder() or Path(FOLDER))


def find_folder(start: Path | None = None) -> Path | None:
    """The nearest ``.quarterdeck`` with a cluster in it, in this folder or above."""
    here = (start or Path.cwd()).resolve()
    for directory in (here, *here.parents):
        if LocalCluster.exists(directory / FOLDER):
            return directory / FOLDER
    return None


def fail(message: str, code: int = EXIT_REFUSED) -> NoReturn:
    """End the program with ``error: message`` and an exit code."""
    raise CommandError(f"error: {message}", code)


def api_error_text(error: ApiError) -> str:
    """What the server said, as kubectl words it; causes that the message does not name are listed below it."""
    causes = [f"\n  * {cause.field}: {cause.message}" for cause in error.causes if cause.message not in error.message]
    return f"Error from server ({error.reason or error.code.name}): {error.message}{''.join(causes)}"


def coroutine(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Make an async function a click command: run it, and turn expected errors into a message and an exit code."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return asyncio.run(function(*args, **kwargs))
        except UnavailableError as error:
            fail(_unreachable_text(error), EXIT_UNREACHABLE)
        except ApiError as error:
            raise CommandError(api_error_text(error)) from error
        except ConfigError as error:
            fail(str(error), EXIT_USAGE)
        except QuarterdeckError as error:
            fail(str(error))
        except KeyboardInterrupt:
            raise CommandError("interrupted", EXIT_INTERRUPTED) from None
        except BrokenPipeError:
            # The reader of our output went away (`qd get pods | head`): nothing to say, nowhere to say it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)

    return run


def _unreachable_text(error: UnavailableError) -> str:
    text = error.message
    context = click.get_current_context(silent=True)
    settings = context.find_object(Settings) if context is not None else None
    if settings is not None:
        text += f"\nasked: {', '.join(settings.resolve_endpoints())}; `qd status` shows which replicas answer"
    if error.unknown_outcome:
        text += "\nThe write may or may not have happened: look before you repeat it."
    return text


def settings_of(context: click.Context) -> Settings:
    """The settings of the command line that this context belongs to."""
    settings = context.find_object(Settings)
    if settings is None:
        raise ConfigError("the command was called without its group; use `qd`")
    return settings
