"""etcdserverpb.Auth: users, roles and permissions, and the tokens that stand for a user.

Owns the translation of a request into a replicated command; the rules are the store's (``store.auth``). Reads confirm
the read index and look at the applied state: nothing is logged for them. A password is hashed here, before anything
else sees it: neither log nor snapshot nor any other replica ever has it.

Every change leaves one line in the audit log: who, what, to whom; never a secret.
"""

from __future__ import annotations

import logging
from typing import Final

from controlplane.base.errors import Code, StatusError
from controlplane.base.rand import Rand
from controlplane.etcd.authorizer import Authorizer
from controlplane.etcd.context import Context, request_id_of, timeout_ms_of
from controlplane.etcd.local import LocalKV
from controlplane.etcd.passwords import Passwords
from controlplane.etcd.tokens import Tokens
from controlplane.pb.etcd import rpc_pb2, rpc_pb2_grpc
from controlplane.pb.quarterdeck.internal.v1.command_pb2 import AuthEnable, Command
from controlplane.store.auth import Auth
from controlplane.store.auth_errors import (
    authentication_failed,
    not_enabled,
    role_empty,
    role_not_found,
    user_empty,
    user_not_found,
)
from controlplane.store.permissions import check_root

__all__ = ["AuthService"]

_log = logging.getLogger("quarterdeck.auth")

_TOKEN_KEY_BYTES: Final = 32
#: Of a name that a stranger sent, in the log.
_SHOWN_CHARS_MAX: Final = 64


class AuthService(rpc_pb2_grpc.AuthServicer):
    """etcdserverpb.Auth."""

    def __init__(
        self, kv: LocalKV, auth: Auth, authorizer: Authorizer, tokens: Tokens, passwords: Passwords, rand: Rand
    ) -> None:
        self._kv = kv
        self._auth = auth
        self._authorizer = authorizer
        self._tokens = tokens
        self._passwords = passwords
        self._rand = rand

    # -- authentication

    async def AuthEnable(  # noqa: N802
        self, request: rpc_pb2.AuthEnableRequest, context: Context
    ) -> rpc_pb2.AuthEnableResponse:
        command = Command(auth_enable=AuthEnable(token_key=self._rand.token(_TOKEN_KEY_BYTES)))
        return rpc_pb2.AuthEnableResponse(header=await self._change(command, context))

    async def AuthDisable(  # noqa: N802
        self, request: rpc_pb2.AuthDisableRequest, context: Context
    ) -> rpc_pb2.AuthDisableResponse:
        return rpc_pb2.AuthDisableResponse(header=await self._change(Command(auth_disable=request), context))

    async def AuthStatus(  # noqa: N802
        self, request: rpc_pb2.AuthStatusRequest, context: Context
    ) -> rpc_pb2.AuthStatusResponse:
        """Anybody may ask: a client must be able to find out that it has to log in."""
        await self._kv.barrier(timeout_ms_of(context))
        return rpc_pb2.AuthStatusResponse(
            header=self._kv.header(), enabled=self._auth.enabled, authRevision=self._auth.revision
        )

    async def Authenticate(  # noqa: N802
        self, request: rpc_pb2.AuthenticateRequest, context: Context
    ) -> rpc_pb2.AuthenticateResponse:
        """A token for the right password. Looked up again after the hash was computed, which takes a while."""
        await self._kv.barrier(timeout_ms_of(context))
        if not self._auth.enabled:
            raise not_enabled()
        before = self._auth.user(request.name)
        right = await self._passwords.matches(request.password, before.password_hash if before else "")
        user = self._auth.user(request.name)
        if not right or before is None or user is None or user.credential_revision != before.credential_revision:
            _log.warning("event=login-refused user=%r", request.name[:_SHOWN_CHARS_MAX])
            raise authentication_failed()
        return rpc_pb2.AuthenticateResponse(header=self._kv.header(), token=self._tokens.issue(user))

    # -- users

    async def UserAdd(  # noqa: N802
        self, request: rpc_pb2.AuthUserAddRequest, context: Context
    ) -> rpc_pb2.AuthUserAddResponse:
        await self._authorizer.require_root(context)
        if not request.name:
            raise user_empty()
        if not request.options.no_password:
            request.hashedPassword = await self._passwords.hash(request.password)
        else:
            request.hashedPassword = ""
        request.password = ""
        return rpc_pb2.AuthUserAddResponse(header=await self._change(Command(auth_user_add=request), context))

    async def UserGet(  # noqa: N802
        self, request: rpc_pb2.AuthUserGetRequest, context: Context
    ) -> rpc_pb2.AuthUserGetResponse:
        caller = await self._reader(context)
        if caller is not None and caller != request.name:
            check_root(self._auth, caller)
        user = self._auth.user(request.name)
        if user is None:
            raise user_not_found()
        return rpc_pb2.AuthUserGetResponse(header=self._kv.header(), roles=user.roles)

    async def UserList(  # noqa: N802
        self, request: rpc_pb2.AuthUserListRequest, context: Context
    ) -> rpc_pb2.AuthUserListResponse:
        caller = await self._reader(context)
        if caller is not None:
            check_root(self._auth, caller)
        return rpc_pb2.AuthUserListResponse(header=self._kv.header(), users=[user.name for user in self._auth.users])

    async def UserDelete(  # noqa: N802
        self, request: rpc_pb2.AuthUserDeleteRequest, context: Context
    ) -> rpc_pb2.AuthUserDeleteResponse:
        return rpc_pb2.AuthUserDeleteResponse(header=await self._change(Command(auth_user_delete=request), context))

    async def UserChangePassword(  # noqa: N802
        self, request: rpc_pb2.AuthUserChangePasswordRequest, context: Context
    ) -> rpc_pb2.AuthUserChangePasswordResponse:
        """Every token of the user is void from then on."""
        await self._authorizer.require_root(context)
        if request.hashedPassword:
            raise StatusError(Code.INVALID_ARGUMENT, "quarterdeck: send the password; it is hashed here")
        request.hashedPassword = await self._passwords.hash(request.password)
        request.password = ""
        header = await self._change(Command(auth_user_change_password=request), context)
        return rpc_pb2.AuthUserChangePasswordResponse(header=header)

    async def UserGrantRole(  # noqa: N802
        self, request: rpc_pb2.AuthUserGrantRoleRequest, context: Context
    ) -> rpc_pb2.AuthUserGrantRoleResponse:
        header = await self._change(Command(auth_user_grant_role=request), context)
        return rpc_pb2.AuthUserGrantRoleResponse(header=header)

    async def UserRevokeRole(  # noqa: N802
        self, request: rpc_pb2.AuthUserRevokeRoleRequest, context: Context
    ) -> rpc_pb2.AuthUserRevokeRoleResponse:
        header = await self._change(Command(auth_user_revoke_role=request), context)
        return rpc_pb2.AuthUserRevokeRoleResponse(header=header)

    # -- roles

    async def RoleAdd(  # noqa: N802
        self, request: rpc_pb2.AuthRoleAddRequest, context: Context
    ) -> rpc_pb2.AuthRoleAddResponse:
        if not request.name:
            raise role_empty()
        return rpc_pb2.AuthRoleAddResponse(header=await self._change(Command(auth_role_add=request), context))

    async def RoleGet(  # noqa: N802
        self, request: rpc_pb2.AuthRoleGetRequest, context: Context
    ) -> rpc_pb2.AuthRoleGetResponse:
        caller = await self._reader(context)
        if caller is not None:
            user = self._auth.user(caller)
            if user is None or request.role not in user.roles:
                check_root(self._auth, caller)
        role = self._auth.role(request.role)
        if role is None:
            raise role_not_found()
        permissions = [permission.message() for permission in role.permissions]
        return rpc_pb2.AuthRoleGetResponse(header=self._kv.header(), perm=permissions)

    async def RoleList(  # noqa: N802
        self, request: rpc_pb2.AuthRoleListRequest, context: Context
    ) -> rpc_pb2.AuthRoleListResponse:
        caller = await self._reader(context)
        if caller is not None:
            check_root(self._auth, caller)
        return rpc_pb2.AuthRoleListResponse(header=self._kv.header(), roles=[role.name for role in self._auth.roles])

    async def RoleDelete(  # noqa: N802
        self, request: rpc_pb2.AuthRoleDeleteRequest, context: Context
    ) -> rpc_pb2.AuthRoleDeleteResponse:
        return rpc_pb2.AuthRoleDeleteResponse(header=await self._change(Command(auth_role_delete=request), context))

    async def RoleGrantPermission(  # noqa: N802
        self, request: rpc_pb2.AuthRoleGrantPermissionRequest, context: Context
    ) -> rpc_pb2.AuthRoleGrantPermissionResponse:
        header = await self._change(Command(auth_role_grant_permission=request), context)
        return rpc_pb2.AuthRoleGrantPermissionResponse(header=header)

    async def RoleRevokePermission(  # noqa: N802
        self, request: rpc_pb2.AuthRoleRevokePermissionRequest, context: Context
    ) -> rpc_pb2.AuthRoleRevokePermissionResponse:
        header = await self._change(Command(auth_role_revoke_permission=request), context)
        return rpc_pb2.AuthRoleRevokePermissionResponse(header=header)

    # -- inside

    async def _reader(self, context: Context) -> str | None:
        """Who asks, once this replica knows everything that was committed; None while authentication is disabled."""
        await self._kv.barrier(timeout_ms_of(context))
        return await self._authorizer.caller(context).user()

    async def _change(self, command: Command, context: Context) -> rpc_pb2.ResponseHeader:
        caller = self._authorizer.caller(context)
        header = await self._kv.change_auth(
            command, request_id=request_id_of(context), timeout_ms=timeout_ms_of(context), caller=caller
        )
        by = command.auth_user or self._authorizer.certified(context)  # the latter while authentication is disabled
        _log.info("event=auth-changed by=%r revision=%d %s", by, self._auth.revision, _described(command))
        return header


def _described(command: Command) -> str:
    """What a command changed, for the audit log: names, keys and kinds; nothing secret."""
    kind = command.WhichOneof("op") or ""
    words = [f"change={kind.removeprefix('auth_').replace('_', '-')}"]
    message = getattr(command, kind)
    words += [
        f"{field}={getattr(message, field)!r}"
        for field in ("name", "user", "role", "key", "range_end")
        if field in message.DESCRIPTOR.fields_by_name
    ]
    if kind == "auth_role_grant_permission":
        permission = message.perm
        words.append(f"key={permission.key!r} range_end={permission.range_end!r} kind={permission.permType}")
    return " ".join(words)
