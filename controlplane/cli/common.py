"""What every command shares: where the cluster is, how coroutines run, how errors end the program."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, TypeVar

import click
from rich.console import Console

from controlplane.base.errors import ConfigError, QuarterdeckError
from controlplane.client import ApiError, GrpcClient, UnavailableError
from controlplane.local.cluster import FOLDER, LocalCluster

__all__ = [
    "EXIT_REFUSED",
    "EXIT_UNREACHABLE",
    "EXIT_USAGE",
    "Settings",
    "coroutine",
    "err",
    "fail",
    "find_folder",
    "settings_of",
]

EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3

#: Messages and progress: standard error, so that standard output can be piped.
err = Console(stderr=True, highlight=False, soft_wrap=True)

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Settings:
    """What the options before the sub-command said."""

    endpoints: tuple[str, ...]
    folder: Path | None

    def resolve_endpoints(self) -> list[str]:
        """Endpoints given, or of the environment, or of the local cluster found here.

        Raises:
            ConfigError: there is none of these; says how to name some.
        """
        if self.endpoints:
            return list(self.endpoints)
        folder = self.folder or find_folder()
        if folder is not None and LocalCluster.exists(folder):
            return LocalCluster.open(folder).spec.endpoints
        raise ConfigError(
            f"no cluster: no {FOLDER} in this folder or above it. Start one with `make cluster` (or `qd local up`), "
            "or name one: --endpoints HOST:PORT,HOST:PORT or QD_ENDPOINTS"
        )

    def client(self) -> GrpcClient:
        """A client of that cluster; close it when done."""
        return GrpcClient(self.resolve_endpoints())

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
    """Print an error and end the program."""
    err.print(f"error: {message}", markup=False)
    sys.exit(code)


def coroutine(function: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Make an async function a click command: run it, and turn expected errors into a message and an exit code."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return asyncio.run(function(*args, **kwargs))
        except UnavailableError as error:
            unknown = " The write may or may not have happened." if error.unknown_outcome else ""
            fail(f"{error.message}{unknown}", EXIT_UNREACHABLE)
        except ApiError as error:
            causes = "".join(f"\n  * {cause.field}: {cause.message}" for cause in error.causes)
            fail(f"from server ({error.reason or error.code.name}): {error.message}{causes}")
        except ConfigError as error:
            fail(str(error), EXIT_USAGE)
        except QuarterdeckError as error:
            fail(str(error))
        except KeyboardInterrupt:
            err.print("interrupted")
            sys.exit(130)
        except BrokenPipeError:
            # The reader of our output went away (`qd get pods | head`): nothing to say, nowhere to say it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)

    return run


def settings_of(context: click.Context) -> Settings:
    """The settings of the command line that this context belongs to."""
    settings = context.find_object(Settings)
    if settings is None:
        raise ConfigError("the command was called without its group; use `qd`")
    return settings
