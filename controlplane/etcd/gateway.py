"""The JSON gateway: the etcd v3 API over HTTP, for clients without gRPC (etcd3gw, curl).

Paths, JSON and errors are those of etcd's own gateway (etcd documentation, "gRPC gateway"; grpc-gateway's runtime):
``POST /v3/...`` with the request as JSON, field names as in the protocol, bytes in base64, 64-bit numbers as text. A
stream answers one line ``{"result": ...}`` per message; an error is ``{"error", "message", "code"}``.

Owns the translation between HTTP and the handlers of the gRPC services, which it calls in this process, behind the
same interceptors as the gRPC port: metrics, errors, permissions. Knows no service's meaning.

On a cluster with TLS the caller must come over TLS with a certificate, as on the gRPC port: the HTTP port also serves
metrics to anyone, so the gateway checks each request itself.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any, Final

import grpc
from aiohttp import web
from google.protobuf import descriptor_pool, json_format
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from controlplane.base.errors import Code
from controlplane.base.limits import REQUEST_BYTES_MAX
from controlplane.etcd.together import together
from controlplane.pb.etcd import rpc_pb2, v3election_pb2, v3lock_pb2
from controlplane.transport.handlers import HandlerTable, LocalContext

__all__ = ["BODY_BYTES_MAX", "ROUTES", "Authenticate", "Gateway"]

_log = logging.getLogger("quarterdeck.gateway")

#: Base64 makes four bytes of three; the rest is room for names and braces.
BODY_BYTES_MAX: Final = REQUEST_BYTES_MAX * 3 // 2 + 64 * 1024
#: Streams (watches, keep-alives, elections) open at once through this gateway.
_STREAMS_MAX: Final = 1_000
#: Messages of a request stream that wait for their handler.
_QUEUED_MAX: Final = 16

_FILES: Final = (rpc_pb2.DESCRIPTOR, v3lock_pb2.DESCRIPTOR, v3election_pb2.DESCRIPTOR)


def _service(package: str, name: str, prefix: str, methods: Mapping[str, str]) -> dict[str, str]:
    return {f"/v3/{prefix}/{path}": f"{package}.{name}/{method}" for path, method in methods.items()}


#: HTTP path -> "package.Service/Method".
ROUTES: Final[Mapping[str, str]] = {
    **_service(
        "etcdserverpb", "KV", "kv",
        {"range": "Range", "put": "Put", "deleterange": "DeleteRange", "txn": "Txn", "compaction": "Compact"},
    ),
    "/v3/watch": "etcdserverpb.Watch/Watch",
    **_service(
        "etcdserverpb", "Lease", "lease",
        {
            "grant": "LeaseGrant", "revoke": "LeaseRevoke", "keepalive": "LeaseKeepAlive",
            "timetolive": "LeaseTimeToLive", "leases": "LeaseLeases",
        },
    ),
    # Where etcd 3.3 had them, and older clients still look.
    **_service(
        "etcdserverpb", "Lease", "kv/lease",
        {"revoke": "LeaseRevoke", "timetolive": "LeaseTimeToLive", "leases": "LeaseLeases"},
    ),
    **_service(
        "etcdserverpb", "Cluster", "cluster/member",
        {
            "add": "MemberAdd", "remove": "MemberRemove", "update": "MemberUpdate", "list": "MemberList",
            "promote": "MemberPromote",
        },
    ),
    **_service(
        "etcdserverpb", "Maintenance", "maintenance",
        {
            "alarm": "Alarm", "status": "Status", "defragment": "Defragment", "hash": "Hash", "hashkv": "HashKV",
            "snapshot": "Snapshot", "transfer-leadership": "MoveLeader",
        },
    ),
    **_service(
        "etcdserverpb", "Auth", "auth",
        {
            "enable": "AuthEnable", "disable": "AuthDisable", "status": "AuthStatus", "authenticate": "Authenticate",
            "user/add": "UserAdd", "user/get": "UserGet", "user/list": "UserList", "user/delete": "UserDelete",
            "user/changepw": "UserChangePassword", "user/grant": "UserGrantRole", "user/revoke": "UserRevokeRole",
            "role/add": "RoleAdd", "role/get": "RoleGet", "role/list": "RoleList", "role/delete": "RoleDelete",
            "role/grant": "RoleGrantPermission", "role/revoke": "RoleRevokePermission",
        },
    ),
    **_service("v3lockpb", "Lock", "lock", {"lock": "Lock", "unlock": "Unlock"}),
    **_service(
        "v3electionpb", "Election", "election",
        {
            "campaign": "Campaign", "proclaim": "Proclaim", "leader": "Leader", "observe": "Observe",
            "resign": "Resign",
        },
    ),
}  # fmt: skip

#: grpc-gateway's HTTPStatusFromCode.
_HTTP_STATUS: Final = {
    Code.CANCELLED: 408,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 412,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}

#: Says who calls: the certificate in the shape of ``auth_context()``. Raises PermissionError when the connection may
#: not use the gateway; its text is for the caller.
Authenticate = Callable[[web.BaseRequest], Mapping[str, Sequence[bytes]]]


class _BadJsonError(Exception):
    """The request is not the message it should be; the text says why."""


class Gateway:
    """Serves :data:`ROUTES` from the services that were added to a handler table."""

    def __init__(self, table: HandlerTable, authenticate: Authenticate) -> None:
        self._table = table
        self._authenticate = authenticate
        self._streams = 0

    def routes(self) -> list[web.RouteDef]:
        """For the HTTP server."""
        return [web.post(path, self._handler(_method(method))) for path, method in ROUTES.items() if _known(method)]

    def _handler(self, method: MethodDescriptor) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        name = f"/{method.containing_service.full_name}/{method.name}"
        request_type: type[Message] = GetMessageClass(method.input_type)

        async def handle(request: web.Request) -> web.StreamResponse:
            try:
                auth = self._authenticate(request)
            except PermissionError as error:
                return _failure(Code.UNAUTHENTICATED, str(error))
            context = LocalContext(_metadata(request), peer_name=f"http:{request.remote}", auth=auth)
            handler = await self._table.find(name, context.metadata)
            if handler is None:
                return _failure(Code.UNIMPLEMENTED, f"{name} is not served here")
            if not method.server_streaming:
                return await _unary(handler, request, request_type, context)
            if self._streams >= _STREAMS_MAX:
                return _failure(Code.RESOURCE_EXHAUSTED, f"{_STREAMS_MAX} streams are open on this gateway")
            self._streams += 1
            try:
                return await _stream(handler, request, request_type, context, many=method.client_streaming)
            finally:
                self._streams -= 1

        return handle


def _known(name: str) -> bool:
    service, _, method = name.partition("/")
    return any(method in f.services_by_name[s].methods_by_name for f in _FILES for s in f.services_by_name
               if f.services_by_name[s].full_name == service)  # fmt: skip


def _method(name: str) -> MethodDescriptor:
    service, _, method = name.partition("/")
    found: MethodDescriptor = descriptor_pool.Default().FindServiceByName(service).methods_by_name[method]
    return found


def _metadata(request: web.Request) -> tuple[tuple[str, str | bytes], ...]:
    """What travels as metadata: the token, under both names etcd knows, and our request id."""
    metadata: list[tuple[str, str | bytes]] = []
    token = request.headers.get("Authorization") or request.headers.get("Grpc-Metadata-token")
    if token is not None:
        metadata += [("token", token), ("authorization", token)]
    for header, key in (("Grpc-Metadata-hasleader", "hasleader"), ("Grpc-Metadata-qd-request-id", "qd-request-id")):
        if (value := request.headers.get(header)) is not None:
            metadata.append((key, value))
    return tuple(metadata)


# -- one request, one answer ------------------------------------------------------------------------------------------


async def _unary(
    handler: Any, request: web.Request, message_type: type[Message], context: LocalContext
) -> web.Response:
    body = await request.read()
    try:
        message = _parse(body, message_type)
    except _BadJsonError as error:
        return _failure(Code.INVALID_ARGUMENT, str(error))
    try:
        answer = await handler.unary_unary(message, context)
    except grpc.aio.AbortError:
        return _failure(_code(context), context.message)
    return web.Response(text=_dump(answer), content_type="application/json")


def _parse(body: bytes | str, message_type: type[Message]) -> Message:
    """Raises:
    _BadJsonError: with what is wrong, and where.
    """
    try:
        return json_format.Parse(body if body.strip() else b"{}", message_type(), max_recursion_depth=50)
    except (json_format.ParseError, UnicodeDecodeError, RecursionError) as error:
        raise _BadJsonError(str(error)) from error


def _dump(message: Message) -> str:
    return json.dumps(_plain(message), separators=(",", ":"))


def _plain(message: Message) -> Any:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


# -- streams ----------------------------------------------------------------------------------------------------------


async def _stream(
    handler: Any, request: web.Request, message_type: type[Message], context: LocalContext, *, many: bool
) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "application/json"})

    async def write(message: Any) -> None:
        # The status line waits for the first message: an error before it has its own.
        if not response.prepared:
            await response.prepare(request)
        await response.write(json.dumps({"result": _plain(message)}, separators=(",", ":")).encode() + b"\n")

    context.writer = write
    try:
        if many:
            await _with_requests(handler.stream_stream, request, message_type, context)
        else:
            await handler.unary_stream(_parse(await request.read(), message_type), context)
    except _BadJsonError as error:
        return await _end(response, Code.INVALID_ARGUMENT, str(error))
    except grpc.aio.AbortError:
        return await _end(response, _code(context), context.message)
    except ConnectionError:
        _log.debug("event=stream_gone path=%s", request.path)
        return response
    if not response.prepared:
        await response.prepare(request)
    await response.write_eof()
    return response


async def _with_requests(
    call: Callable[[AsyncIterator[Message], LocalContext], Coroutine[Any, Any, None]],
    request: web.Request,
    message_type: type[Message],
    context: LocalContext,
) -> None:
    """Run a handler over the messages of the body. What is wrong with the body ends the call."""
    messages: asyncio.Queue[Message | None] = asyncio.Queue(_QUEUED_MAX)

    async def feed() -> None:
        async for text in _documents(request.content):
            await messages.put(_parse(text, message_type))
        await messages.put(None)

    async def received() -> AsyncIterator[Message]:
        while (message := await messages.get()) is not None:
            yield message

    # As in etcd, the end of the body does not end a watch; its client closes the connection.
    await together(feed(), call(received(), context))


async def _documents(content: Any) -> AsyncIterator[str]:
    """The JSON documents of a body, one after the other, as they arrive.

    Raises:
        _BadJsonError: something that is not JSON, or one document beyond the limit.
    """
    decoder = json.JSONDecoder()
    buffer = ""
    while True:
        chunk = await content.readany()
        try:
            buffer += chunk.decode()
        except UnicodeDecodeError as error:
            raise _BadJsonError(f"the body is not UTF-8: {error}") from error
        while buffer := buffer.lstrip():
            try:
                _, end = decoder.raw_decode(buffer)
            except json.JSONDecodeError as error:
                if not chunk:
                    raise _BadJsonError(f"the body is not JSON: {error}") from error
                break
            yield buffer[:end]
            buffer = buffer[end:]
        if not chunk:
            return
        if len(buffer) > BODY_BYTES_MAX:
            raise _BadJsonError(f"a message of more than {BODY_BYTES_MAX} bytes")


# -- errors -----------------------------------------------------------------------------------------------------------


def _code(context: LocalContext) -> Code:
    return Code(context.status.value[0])


def _failure(code: Code, message: str) -> web.Response:
    body = {"error": message, "message": message, "code": int(code)}
    return web.json_response(body, status=_HTTP_STATUS.get(code, 500))


async def _end(response: web.StreamResponse, code: Code, message: str) -> web.StreamResponse:
    """End a stream that has failed: with its own status if nothing has left yet, with a last line otherwise."""
    if not response.prepared:
        return _failure(code, message)
    status = _HTTP_STATUS.get(code, 500)
    error = {"grpc_code": int(code), "http_code": status, "message": message, "http_status": _REASONS.get(status, "")}
    try:
        await response.write(json.dumps({"error": error}, separators=(",", ":")).encode() + b"\n")
        await response.write_eof()
    except ConnectionError:
        _log.debug("event=stream_gone status=%d", status)
    return response


_REASONS: Final = {
    400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 408: "Request Timeout",
    409: "Conflict", 412: "Precondition Failed", 429: "Too Many Requests", 500: "Internal Server Error",
    501: "Not Implemented", 503: "Service Unavailable", 504: "Gateway Timeout",
}  # fmt: skip
