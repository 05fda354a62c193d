"""An administrator who turns authentication on and off and gives and takes a permission, and users who live with it.

A user's write that is refused for want of permission must have no effect, ever: also not by a copy of it that is still
on its way. What the store decides is compared with the model where it is applied (``checks``).
"""

from __future__ import annotations

from collections.abc import Sequence

from controlplane.base.errors import Code, StatusError
from controlplane.base.rand import SeededRand
from controlplane.etcd.local import LocalKV
from controlplane.pb.etcd.auth_pb2 import Permission
from controlplane.pb.etcd.rpc_pb2 import (
    AuthDisableRequest,
    AuthRoleAddRequest,
    AuthRoleGrantPermissionRequest,
    AuthRoleRevokePermissionRequest,
    AuthUserAddRequest,
    AuthUserGrantRoleRequest,
    PutRequest,
    PutResponse,
    ResponseHeader,
)
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import AuthEnable, Command
from controlplane.store.auth_errors import OLD_REVISION_TEXT, USER_EMPTY_TEXT
from controlplane.store.keyspan import prefix_end
from tests.sim.checks import Checks
from tests.sim.node import SimNode
from tests.sim.rpc import TIMEOUT_MS, Rpc

__all__ = ["Administrator", "UserClient"]

_AGAIN = (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED)
#: Said when the replica knew less of users than the store: the write had no effect and may be tried again.
_STALE = (OLD_REVISION_TEXT, USER_EMPTY_TEXT)
_USER, _ROLE, _OPEN, _SHUT = "u", "r", b"a/", b"b/"
_PERMISSION = Permission(permType=Permission.READWRITE, key=_OPEN, range_end=prefix_end(_OPEN))


class _Certified:
    """A caller whose certificate has that name, as the replica that is asked knows it."""

    def __init__(self, kv: LocalKV, name: str) -> None:
        self._kv = kv
        self._name = name

    async def user(self) -> str | None:
        return self._name if self._kv._store.auth.enabled else None


class _Client:
    """One request at a time, through any replica, under one id until its fate is known."""

    def __init__(self, name: str, rpc: Rpc, nodes: Sequence[SimNode], checks: Checks, rand: SeededRand) -> None:
        self.name = name
        self.rpc = rpc
        self.nodes = nodes
        self.checks = checks
        self.rand = rand
        self.busy = False
        self.stopped = False

    async def pause(self, at_most_s: float) -> None:
        self.busy = False
        await self.rpc.sleep(at_most_s * self.rand.random())
        self.busy = True

    def node(self) -> SimNode:
        return self.nodes[self.rand.randint(0, len(self.nodes) - 1)]

    async def again(self, error: StatusError) -> None:
        """Wait a moment; but raise what is an answer."""
        if error.code not in _AGAIN and error.message not in _STALE:
            raise error
        await self.rpc.sleep(0.005 + 0.03 * self.rand.random())


class Administrator(_Client):
    """Makes the users, then changes its mind until told to stop."""

    async def run(self) -> None:
        self.busy = True
        await self._do(Command(auth_user_add=AuthUserAddRequest(name="root")))
        await self._do(Command(auth_user_grant_role=AuthUserGrantRoleRequest(user="root", role="root")))
        await self._do(Command(auth_user_add=AuthUserAddRequest(name=_USER)))
        await self._do(Command(auth_role_add=AuthRoleAddRequest(name=_ROLE)))
        await self._do(Command(auth_user_grant_role=AuthUserGrantRoleRequest(user=_USER, role=_ROLE)))
        on = granted = False
        while not self.stopped:
            if self.rand.random() < 0.4:
                on = not on
                enable = Command(auth_enable=AuthEnable(token_key=self.rand.token(32)))
                await self._do(enable if on else Command(auth_disable=AuthDisableRequest()))
            else:
                granted = not granted
                give = AuthRoleGrantPermissionRequest(name=_ROLE, perm=_PERMISSION)
                take = AuthRoleRevokePermissionRequest(role=_ROLE, key=_OPEN, range_end=prefix_end(_OPEN))
                change = Command(auth_role_grant_permission=give)
                await self._do(change if granted else Command(auth_role_revoke_permission=take))
            await self.pause(0.4)
        self.busy = False

    async def _do(self, command: Command) -> None:
        request_id = self.rand.token(16)
        while True:
            try:
                await self.rpc.call(self.node(), lambda kv: _change(kv, command, request_id))
                return
            except StatusError as error:
                await self.again(error)


async def _change(kv: LocalKV, command: Command, request_id: bytes) -> ResponseHeader:
    asked = Command()
    asked.CopyFrom(command)  # the replica notes in it who asks
    caller = _Certified(kv, "root")
    return await kv.change_auth(asked, request_id=request_id, timeout_ms=TIMEOUT_MS, caller=caller)


class UserClient(_Client):
    """Writes where it sometimes may, and where it never may while anybody looks."""

    async def run(self) -> None:
        count = 0
        while not self.stopped:
            await self.pause(0.1)
            count += 1
            key = (_OPEN if self.rand.random() < 0.7 else _SHUT) + b"%d" % self.rand.randint(0, 3)
            await self._put(PutRequest(key=key, value=b"%s.%d" % (self.name.encode(), count)))
        self.busy = False

    async def _put(self, put: PutRequest) -> None:
        request_id = self.rand.token(16)
        while True:
            try:
                answer = await self.rpc.call(self.node(), lambda kv: _put_as_user(kv, put, request_id))
                self.checks.users_write_acked(put, answer.header.revision)
                return
            except StatusError as error:
                if error.code is Code.PERMISSION_DENIED:
                    self.checks.users_write_denied(put)
                    return
                await self.again(error)


async def _put_as_user(kv: LocalKV, put: PutRequest, request_id: bytes) -> PutResponse:
    return await kv.put(put, request_id=request_id, timeout_ms=TIMEOUT_MS, caller=_Certified(kv, _USER))
