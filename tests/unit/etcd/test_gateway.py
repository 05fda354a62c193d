"""The JSON gateway speaks as etcd's own does: paths, field names, base64, numbers as text, errors, streams."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Self

import aiohttp
import pytest
from aiohttp import web

from controlplane.base.clock import SystemClock
from controlplane.base.http import ObservabilityServer
from controlplane.etcd import service
from controlplane.etcd.gateway import BODY_BYTES_MAX, ROUTES, Gateway
from controlplane.etcd.metrics import WATCH_STREAMS
from controlplane.transport.handlers import HandlerTable
from controlplane.transport.interceptors import StatusInterceptor
from tests.unit.etcd.fakes import Replica, put


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def anybody(_request: web.BaseRequest) -> Mapping[str, Sequence[bytes]]:
    return {}


class Site:
    """A replica behind the gateway on a real port."""

    def __init__(self, authenticate: Any = anybody) -> None:
        self.replica = Replica()
        table = HandlerTable([StatusInterceptor(SystemClock())])
        service.add_services(table, self.replica.kv, self.replica.raft, self.replica.store)
        self._server = ObservabilityServer(
            "127.0.0.1:0", {}, routes=Gateway(table, authenticate).routes(), body_bytes_max=BODY_BYTES_MAX
        )
        self.http: aiohttp.ClientSession = aiohttp.ClientSession()

    async def __aenter__(self) -> Self:
        self.replica.kv.start()
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.http.close()
        await self._server.stop()
        await self.replica.kv.stop()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._server.port}{path}"

    async def post(self, path: str, body: Any, **more: Any) -> tuple[int, Any]:
        data = body if isinstance(body, (str, bytes)) else json.dumps(body)
        async with self.http.post(self.url(path), data=data, **more) as response:
            return response.status, json.loads(await response.text())


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with Site() as site:
        yield site


async def test_a_put_is_read_back_with_bytes_in_base64_and_numbers_as_text(site: Site) -> None:
    status, answer = await site.post("/v3/kv/put", {"key": b64("k"), "value": b64("v")})
    assert (status, answer["header"]["revision"]) == (200, "2")
    status, answer = await site.post("/v3/kv/range", {"key": b64("k")})
    assert status == 200
    assert answer["kvs"] == [
        {"key": b64("k"), "value": b64("v"), "create_revision": "2", "mod_revision": "2", "version": "1"}
    ]
    assert answer["count"] == "1"


async def test_numbers_may_come_as_numbers_and_enumerations_by_name(site: Site) -> None:
    for key in ("a", "b"):
        await put(site.replica.kv, key.encode())
    request = {"key": b64("a"), "range_end": b64("c"), "limit": 1, "sort_order": "DESCEND", "sort_target": "KEY"}
    _, answer = await site.post("/v3/kv/range", request)
    assert [kv["key"] for kv in answer["kvs"]] == [b64("b")]
    assert answer["more"] is True


async def test_a_transaction_compares_and_branches(site: Site) -> None:
    request = {
        "compare": [{"key": b64("k"), "target": "CREATE", "result": "EQUAL", "create_revision": "0"}],
        "success": [{"request_put": {"key": b64("k"), "value": b64("first")}}],
        "failure": [{"request_range": {"key": b64("k")}}],
    }
    assert (await site.post("/v3/kv/txn", request))[1]["succeeded"] is True
    _, answer = await site.post("/v3/kv/txn", request)
    assert "succeeded" not in answer
    assert answer["responses"][0]["response_range"]["kvs"][0]["value"] == b64("first")


async def test_an_error_has_its_status_and_the_text_that_clients_match(site: Site) -> None:
    status, answer = await site.post("/v3/kv/range", {"key": b64("k"), "revision": 99})
    text = "etcdserver: mvcc: required revision is a future revision"
    assert (status, answer) == (400, {"error": text, "message": text, "code": 11})
    status, answer = await site.post("/v3/lease/revoke", {"ID": "7"})
    assert (status, answer["code"]) == (404, 5)


@pytest.mark.parametrize("body", ["{", "[]", '{"key": "k', '{"kee": ""}', '{"key": 7}', b"\xff", "[" * 100_000])
async def test_a_body_that_is_not_the_request_is_refused_and_says_why(site: Site, body: str | bytes) -> None:
    status, answer = await site.post("/v3/kv/range", body)
    assert (status, answer["code"]) == (400, 3)
    assert answer["message"]


async def test_a_body_beyond_the_limit_is_refused(site: Site) -> None:
    async with site.http.post(site.url("/v3/kv/put"), data=io.BytesIO(b" " * (BODY_BYTES_MAX + 1))) as response:
        assert response.status == 413


async def lines(response: aiohttp.ClientResponse) -> AsyncIterator[Any]:
    async for line in response.content:
        yield json.loads(line)


async def test_a_watch_streams_a_line_per_message_and_ends_with_its_client(site: Site) -> None:
    body = json.dumps({"create_request": {"key": b64("k")}})
    async with asyncio.timeout(10):
        async with site.http.post(site.url("/v3/watch"), data=body) as response:
            received = lines(response)
            assert (await anext(received))["result"]["created"] is True
            await put(site.replica.kv, b"k", b"new")
            event = (await anext(received))["result"]["events"][0]
            assert (event["kv"]["key"], event["kv"]["value"]) == (b64("k"), b64("new"))
            assert WATCH_STREAMS.count == 1
        while WATCH_STREAMS.count:  # noqa: ASYNC110 - the server notices by itself, and tells nobody
            await asyncio.sleep(0.01)


async def test_two_requests_in_one_body_are_two_watches(site: Site) -> None:
    body = "".join(json.dumps({"create_request": {"key": b64(key)}}) for key in ("a", "b"))
    async with asyncio.timeout(10), site.http.post(site.url("/v3/watch"), data=body) as response:
        received = lines(response)
        ids = {(await anext(received))["result"].get("watch_id", "0") for _ in range(2)}
        assert ids == {"0", "1"}


async def test_a_keep_alive_answers_and_ends_with_its_body(site: Site) -> None:
    _, granted = await site.post("/v3/lease/grant", {"TTL": 60})
    async with site.http.post(site.url("/v3/lease/keepalive"), data=json.dumps({"ID": granted["ID"]})) as response:
        answers = [json.loads(line) async for line in response.content]
    assert [a["result"]["TTL"] for a in answers] == ["60"]


async def test_a_stream_that_fails_before_its_first_message_has_the_errors_status(site: Site) -> None:
    site.replica.raft.set_leader(None)
    status, answer = await site.post(
        "/v3/watch", {"create_request": {"key": b64("k")}}, headers={"Grpc-Metadata-hasleader": "true"}
    )
    assert (status, answer["message"]) == (503, "etcdserver: no leader")


async def test_who_may_not_call_is_refused_before_the_body_is_read() -> None:
    def nobody(_request: web.BaseRequest) -> Mapping[str, Sequence[bytes]]:
        raise PermissionError("come with a certificate")

    async with Site(nobody) as site:
        assert (await site.post("/v3/kv/put", "not even JSON"))[0] == 401
        assert site.replica.store.revision == 1


async def test_every_route_that_is_in_the_protocol_is_served(site: Site) -> None:
    for path in ROUTES:
        async with site.http.get(site.url(path)) as response:
            assert response.status in (404, 405)  # 404: a service that this build's protocol does not have
    async with site.http.get(site.url("/v3/kv/range")) as response:
        assert response.status == 405
