"""A small state machine with the contract of the store: unique writes, remembered request ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence

from controlplane.pb.quarterdeck.internal.v1.command_pb2 import Proposal


class ToyMachine:
    """Appends payloads to a list, once per request id; replies with the position."""

    def __init__(self) -> None:
        self.log: list[bytes] = []
        self.positions: dict[bytes, int] = {}
        self.indexes: list[int] = []
        self._applied_index = 0
        self._digest = hashlib.sha256()

    def apply(self, index: int, term: int, proposals: Sequence[Proposal]) -> list[bytes]:
        assert index == self._applied_index + 1, (index, self._applied_index)
        self._applied_index = index
        self.indexes.append(index)
        replies = []
        for proposal in proposals:
            if proposal.request_id not in self.positions:
                self.positions[proposal.request_id] = len(self.log)
                self.log.append(proposal.payload)
                self._digest.update(proposal.payload)
            replies.append(str(self.positions[proposal.request_id]).encode())
        return replies

    def snapshot(self) -> Iterable[bytes]:
        state = {
            "index": self._applied_index,
            "log": [p.hex() for p in self.log],
            "positions": {k.hex(): v for k, v in self.positions.items()},
        }
        data = json.dumps(state).encode()
        return (data[at : at + 4096] for at in range(0, len(data), 4096))

    def restore(self, chunks: Iterable[bytes]) -> None:
        state = json.loads(b"".join(chunks))
        self._applied_index = state["index"]
        self.log = [bytes.fromhex(p) for p in state["log"]]
        self.positions = {bytes.fromhex(k): v for k, v in state["positions"].items()}
        self._digest = hashlib.sha256(b"".join(self.log))

    def begin_restore(self) -> ToyRestore:
        return ToyRestore(self)

    @property
    def applied_index(self) -> int:
        return self._applied_index

    @property
    def revision(self) -> int:
        return len(self.log)

    @property
    def state_hash(self) -> str:
        return self._digest.hexdigest()


class ToyRestore:
    """Gathers the chunks."""

    def __init__(self, machine: ToyMachine) -> None:
        self._machine = machine
        self._chunks: list[bytes] = []

    def feed(self, chunk: bytes) -> None:
        self._chunks.append(chunk)

    def commit(self) -> None:
        self._machine.restore(self._chunks)
