"""Are the replicas' states the same? Compared all the time, and the odd one is taken out of service.

Owns the comparison, the judgement and the verdict. Every replica keeps the hash of its state after each recent entry of
the log (``store.hash``); the leader asks all members for theirs at one index, every few seconds. A state once different
stays different, since each hash chains on the one before.

Judgement (:func:`judge`, pure): with one hash held by a majority of the voters, everybody else is odd. With all voters
heard and no majority for any, nobody can say who is right, and all are. Otherwise no judgement yet: a replica that is
down may decide it, and stopping the cluster on a guess helps nobody; until then the difference is logged and counted
at every comparison.

The verdict goes through the log as a command of its own (``Condemn``), so it holds for ever and everywhere, and no
client can speak it; it is listed as the member's CORRUPT alarm. The replica it names serves nobody from that entry on
(``LocalKV``) and stops (:meth:`Integrity.run` raises): leadership, votes and reads go with it. It does not come back by
itself: its state cannot be repaired, only replaced (remove the member, add a new one).
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

from controlplane.base.clock import Clock
from controlplane.base.errors import CorruptStateError, StatusError
from controlplane.etcd import metrics
from controlplane.etcd.local import LocalKV
from controlplane.pb.quarterdeck.internal.v1.integrity_pb2 import HashAnswer, HashQuery
from controlplane.raft.types import Member, RaftHandle
from controlplane.store.store import Store

__all__ = ["CHANNEL", "EVERY_S", "CorruptMemberError", "Integrity", "judge"]

log = logging.getLogger("quarterdeck.integrity")

CHANNEL: Final = "hash"
#: Between two comparisons. What is kept (1,024 entries) covers it at several hundred entries a second and more, and a
#: comparison that comes too late for one replica is made up for by the next.
EVERY_S: Final = 2.0
_ASK_TIMEOUT_MS: Final = 1_000


class CorruptMemberError(CorruptStateError):
    """This replica's state is not the cluster's: it stops, and must be replaced."""


def judge(hashes: Mapping[int, bytes], voters: Sequence[int]) -> list[int] | None:
    """Which members' states are wrong, by their hashes at one index; None: they differ and nobody can tell yet.

    Args:
        hashes: by member id, of those that answered.
        voters: ids of all voting members, heard or not.
    """
    if len(frozenset(hashes.values())) <= 1:
        return []
    votes = Counter(hashes[voter] for voter in voters if voter in hashes)
    for digest, count in votes.most_common(1):
        if count > len(voters) // 2:
            return sorted(member for member, theirs in hashes.items() if theirs != digest)
    return sorted(hashes) if all(voter in hashes for voter in voters) else None


class Integrity:
    """The comparing part of one replica. Answers its peers from the moment it is made; compares while it leads."""

    def __init__(self, kv: LocalKV, raft: RaftHandle, store: Store, clock: Clock, *, every_s: float = EVERY_S) -> None:
        self._kv = kv
        self._raft = raft
        self._store = store
        self._clock = clock
        self._every_s = every_s
        self._alarmed = asyncio.Event()
        store.alarms.listen(self._alarmed.set)
        raft.serve(CHANNEL, self._answer)

    async def run(self) -> None:
        """Until cancelled.

        Raises:
            CorruptMemberError: this replica is the odd one.
        """
        comparing = asyncio.create_task(self._compare_for_ever(), name="integrity-comparing")
        try:
            while True:
                self.check()
                alarmed = asyncio.create_task(self._alarmed.wait())
                await asyncio.wait({alarmed, comparing}, return_when=asyncio.FIRST_COMPLETED)
                alarmed.cancel()
                if comparing.done():
                    comparing.result()
                self._alarmed.clear()
        finally:
            comparing.cancel()

    def check(self) -> None:
        """Raises:
        CorruptMemberError: the log has a verdict that this replica's state is wrong.
        """
        status = self._raft.status()
        if status.member_id in self._store.alarms.condemned:
            raise CorruptMemberError(
                f"the state of member {status.name} ({status.member_id:x}) differs from the other replicas' at the "
                f"same entry of the log; it serves nobody any more. Replace it: `qd member remove {status.name}`, "
                "move its data directory away, `qd member add`, and start the new member"
            )

    async def _compare_for_ever(self) -> None:
        while True:
            await self._clock.sleep(self._every_s)
            status = self._raft.status()
            if status.leader == status.name:
                try:
                    await self.compare()
                except StatusError as error:  # nobody to write the verdict with: the next round does
                    log.warning("event=integrity-unfinished reason=%s", error.message)

    async def compare(self) -> None:
        """Compare once with every member that can be reached, and condemn those that are wrong.

        Raises:
            StatusError: a verdict could not be written.
        """
        members = [member for member in self._raft.status().members if member.name]
        answers = await self._ask(members, self._store.applied_index)
        if len({member_id for member_id, answer in answers.items() if self._differs(answer)}) == 0:
            metrics.INTEGRITY_COMPARED.inc(max(0, len(answers) - 1))
            return
        # Judge at an index that everybody who answered has reached.
        index = min(answer.index for answer in answers.values())
        answers = await self._ask(members, index)
        hashes = {member_id: answer.hash for member_id, answer in answers.items() if answer.index == index}
        odd = judge(hashes, [member.id for member in members if not member.learner])
        if odd == []:
            return
        names = {member.id: member.name for member in members}
        shown = " ".join(f"{names[member_id]}={digest.hex()}" for member_id, digest in sorted(hashes.items()))
        metrics.INTEGRITY_DIFFERENCES.inc()
        log.critical("event=state-differs index=%d %s", index, shown)
        if odd is None:
            log.critical("event=state-undecided index=%d reason=no-majority-of-voters-answered", index)
            return
        for member_id in odd:
            if member_id not in self._store.alarms.condemned:
                log.critical("event=corrupt-member name=%s id=%x index=%d", names[member_id], member_id, index)
                await self._kv.condemn(member_id)

    def _differs(self, answer: HashAnswer) -> bool:
        mine = self._store.hash_at(answer.index)
        return mine is not None and mine != answer.hash

    async def _ask(self, members: Sequence[Member], index: int) -> dict[int, HashAnswer]:
        """What each knows, by member id; members that did not answer, or not know that index any more, are left out."""
        answers = await asyncio.gather(*(self._ask_one(member, index) for member in members))
        return {member.id: answer for member, answer in zip(members, answers, strict=True) if answer and answer.hash}

    async def _ask_one(self, member: Member, index: int) -> HashAnswer | None:
        query = HashQuery(index=index).SerializeToString()
        try:
            return HashAnswer.FromString(await self._raft.call(member.name, CHANNEL, query, timeout_ms=_ASK_TIMEOUT_MS))
        except StatusError:
            return None  # down, or too old to know the question: the others are compared all the same

    async def _answer(self, peer: str, payload: bytes) -> bytes:
        index = min(HashQuery.FromString(payload).index, self._store.applied_index)
        return HashAnswer(index=index, hash=self._store.hash_at(index) or b"").SerializeToString()
