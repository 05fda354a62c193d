"""A command line over a real API server in this process: store, Raft that commits at once, no network.

``Rig.run`` is what a shell does: words in; exit code, standard output and standard error out. Each command runs on a
loop of its own, as in life; so do the test's own writes.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any, TypeVar

import yaml
from click.testing import CliRunner, Result

from controlplane.api.server import ApiServer
from controlplane.base.clock import SystemClock
from controlplane.base.rand import Rand, SeededRand
from controlplane.cli.common import Client, Settings
from controlplane.cli.main import cli
from controlplane.client.codec import from_dict
from controlplane.client.inprocess import InProcessClient
from controlplane.client.interface import ApiError, ObjT
from controlplane.etcd.local import LocalKV
from controlplane.pb.quarterdeck.v1 import api_pb2
from controlplane.store.store import Store
from tests.fakes.raft import FakeRaft

__all__ = ["Rig"]

T = TypeVar("T")


class _Client(InProcessClient):
    """What a command is handed; ``answers`` are what ``logs`` gives, one a call: pieces, or an error."""

    def __init__(self, api: ApiServer, rand: Rand, answers: list[Sequence[bytes] | ApiError], asked: list[Any]) -> None:
        super().__init__(api, clock=SystemClock(), rand=rand, timeout_ms=300)
        self._answers = answers
        self._asked = asked
        self.closed = False

    async def logs(self, request: api_pb2.LogsRequest) -> AsyncIterator[bytes]:
        self._asked.append(request)
        answer = self._answers.pop(0)
        if isinstance(answer, ApiError):
            raise answer
        for piece in answer:
            yield piece

    async def close(self) -> None:
        self.closed = True


class Rig:
    """See the module. Time is the machine's, since commands print ages."""

    def __init__(self) -> None:
        store = Store()
        self.raft = FakeRaft(store)
        clock = SystemClock()
        self.rand = SeededRand(1)  # one for all: two that begin alike would give two writes one request id
        self.api = ApiServer(LocalKV(self.raft, store, clock=clock, rand=self.rand), clock=clock, rand=self.rand)
        self.log_answers: list[Sequence[bytes] | ApiError] = []
        self.logs_asked: list[api_pb2.LogsRequest] = []
        self.clients: list[_Client] = []
        asyncio.run(self.api.bootstrap())

    def connect(self, endpoints: Sequence[str] = ()) -> Client:
        """A client of this cluster, whatever the endpoints."""
        client = _Client(self.api, self.rand, self.log_answers, self.logs_asked)
        self.clients.append(client)
        return client

    def client(self) -> InProcessClient:
        """The test's own client."""
        return InProcessClient(self.api, clock=SystemClock(), rand=self.rand, timeout_ms=300)

    def run(self, *words: str, stdin: str = "") -> Result:
        """``qd WORDS``. An exception that no command should let through is raised here."""
        settings = Settings(endpoints=("127.0.0.1:1",), connect=self.connect)
        result = CliRunner().invoke(cli, list(words), obj=settings, input=stdin, prog_name="qd")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert all(client.closed for client in self.clients), "a command left its client open"
        return result

    def ok(self, *words: str, stdin: str = "") -> str:
        """The standard output of a command that must succeed."""
        result = self.run(*words, stdin=stdin)
        assert result.exit_code == 0, result.output
        return result.stdout

    def rows(self, *words: str) -> list[list[str]]:
        """The table a command prints, split at its columns (two blanks or more), headings first; ages as ``Ns``."""
        text = re.sub(r"\b\d+s\b", "Ns", self.ok(*words))
        return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()]

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a call of the API."""
        return asyncio.run(work)

    def put(self, manifest: str) -> Any:
        """Create an object from YAML, its status included."""
        obj = from_dict(yaml.safe_load(manifest))
        return self.do(self._put(obj))

    async def _put(self, obj: ObjT) -> ObjT:
        client = self.client()
        created = await client.create(obj)
        wanted: Any = obj
        current: Any = created
        if "status" not in obj.DESCRIPTOR.fields_by_name or not wanted.HasField("status"):
            return created
        current.status.CopyFrom(wanted.status)
        return await client.update_status(created)

    def get(self, kind: type[ObjT], name: str, namespace: str = "default") -> ObjT:
        """An object as stored."""
        return self.do(self.client().get(kind, name, namespace=namespace))

    def delete(self, kind: type[ObjT], name: str, namespace: str = "default") -> None:
        """Delete an object at once."""
        self.do(self.client().delete(kind, name, namespace=namespace, grace_period_s=0))
