"""The HTTP port of every process: ``/metrics``, ``/livez``, ``/readyz``, ``/healthz``, ``/health``, ``/version``.

Paths, query parameters and answers are those of Kubernetes' and etcd's own endpoints, so that probes and dashboards
made for them work: ``?verbose`` lists each check, ``?exclude=NAME`` leaves one out, ``/readyz/NAME`` asks one alone.
Knows nothing of what is checked: the owner hands in named checks. What it serves by itself holds no secrets and takes
no commands. An owner may add routes that do (the JSON gateway): they ask every request who it comes from, since this
port speaks plain HTTP to whoever does, and HTTPS to whoever begins with a TLS handshake.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import platform
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from aiohttp import web
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Gauge,
    disable_created_metrics,
    generate_latest,
)

from controlplane.base.addresses import split_address
from controlplane.base.health import KUBERNETES, Check, CheckOutcomes
from controlplane.base.http_listener import HttpListener, bind
from controlplane.base.version import version

__all__ = ["ObservabilityServer"]

log = logging.getLogger("quarterdeck.http")

_CHECK_TIMEOUT_S = 3.0

# A creation time per series would double what a scrape costs, and no dashboard asks for it.
disable_created_metrics()  # type: ignore[no-untyped-call]


_BUILD = Gauge("kubernetes_build_info", "1, labelled with the version that runs.", ["git_version", "platform"])
_BUILD.labels(f"v{version()}", f"{platform.system().lower()}/{platform.machine()}").set(1)


class ObservabilityServer:
    """Serves health and metrics on one address.

    Args:
        listen: ``host:port``; port 0 picks a free one (see :attr:`port`).
        ready: checks of ``/readyz`` and ``/health``.
        live: checks of ``/livez`` and ``/healthz``; an empty mapping means "answers at all".
        registry: what ``/metrics`` shows.
        routes: served beside its own paths.
        body_bytes_max: largest request body.
        versions: shown by ``/version`` beside its own.
        tls: for callers that speak TLS; None closes their connections.
        outcomes: under whose names checks are counted.
    """

    def __init__(
        self,
        listen: str,
        ready: Mapping[str, Check],
        live: Mapping[str, Check] | None = None,
        *,
        registry: CollectorRegistry = REGISTRY,
        routes: Iterable[web.RouteDef] = (),
        body_bytes_max: int = 64 * 1024,
        versions: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        outcomes: Sequence[CheckOutcomes] = (KUBERNETES,),
    ) -> None:
        self._outcomes = outcomes
        self._host, self._port = split_address(listen)
        self._ready = dict(ready)
        self._live = dict(live or {})
        self._registry = registry
        self._routes = tuple(routes)
        self._body_bytes_max = body_bytes_max
        self._versions = dict(versions or {})
        self._tls = tls
        self._runner: web.AppRunner | None = None
        self._reading: web.AppRunner | None = None
        self._listener: HttpListener | None = None

    @property
    def port(self) -> int:
        """The port in use, once started."""
        return self._port

    async def start(self, listening: socket.socket | None = None) -> None:
        """Serve, on a socket that :func:`~controlplane.base.http_listener.bind` made of the same address, or bind one.

        Raises:
            ConfigError: the address cannot be bound; the message names it and why.
        """
        listening = listening or bind(self._host, self._port)
        self._reading = await _set_up(self._own_paths(body_bytes_max=1_024))
        app = self._own_paths(body_bytes_max=self._body_bytes_max)
        app.router.add_routes(self._routes)
        runner = await _set_up(app)
        assert runner.server is not None
        listener = HttpListener(runner.server, self._tls)
        self._port = listener.start(listening)
        self._runner, self._listener = runner, listener

    async def stop(self) -> None:
        """Close the port. Safe to call twice."""
        listener, self._listener = self._listener, None
        if listener is not None:
            await listener.stop()
        runners = (self._runner, self._reading)
        self._runner = self._reading = None
        for runner in runners:
            if runner is not None:
                await runner.cleanup()

    def connection(self) -> asyncio.BaseProtocol:
        """The protocol of one connection that was accepted elsewhere, once started: it serves this object's own paths,
        none of the owner's routes."""
        assert self._reading is not None
        assert self._reading.server is not None
        return self._reading.server()

    def _own_paths(self, *, body_bytes_max: int) -> web.Application:
        app = web.Application(client_max_size=body_bytes_max)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/version", self._version)
        app.router.add_get("/health", self._health)
        for path, checks in (("/livez", self._live), ("/healthz", self._live), ("/readyz", self._ready)):
            app.router.add_get(path, self._handler(path, checks))
            app.router.add_get(path + "/{check}", self._handler(path, checks))
        return app

    async def _metrics(self, _request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _version(self, _request: web.Request) -> web.Response:
        return web.json_response(
            {
                "gitVersion": f"v{version()}",
                "pythonVersion": platform.python_version(),
                "platform": platform.system(),
                **self._versions,
            }
        )

    async def _health(self, _request: web.Request) -> web.Response:
        failed = [f"{name}: {why}" for name, why in (await self._run("readyz", self._ready)).items() if why]
        body = {"health": "false" if failed else "true", "reason": "; ".join(failed)}
        return web.json_response(body, status=503 if failed else 200)

    def _handler(
        self, path: str, checks: Mapping[str, Check]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            chosen = dict(checks)
            alone = request.match_info.get("check")
            if alone is not None:
                if alone not in chosen:
                    known = ", ".join(sorted(chosen)) or "none"
                    return web.Response(status=404, text=f"no check {alone!r} under {path}; there are: {known}\n")
                chosen = {alone: chosen[alone]}
            for name in request.query.getall("exclude", []):
                chosen.pop(name, None)
            results = await self._run(path.strip("/"), chosen)
            failed = any(results.values())
            if not failed and "verbose" not in request.query:
                return web.Response(text="ok")
            lines = [f"[-]{n} failed: {why}" if why else f"[+]{n} ok" for n, why in results.items()]
            lines.append(f"{path.strip('/')} check {'failed' if failed else 'passed'}")
            return web.Response(status=503 if failed else 200, text="\n".join(lines) + "\n")

        return handle

    async def _run(self, endpoint: str, checks: Mapping[str, Check]) -> dict[str, str | None]:
        results: dict[str, str | None] = {}
        for name, check in checks.items():
            outcome = check()
            if inspect.isawaitable(outcome):
                try:
                    async with asyncio.timeout(_CHECK_TIMEOUT_S):
                        outcome = await outcome
                except TimeoutError:
                    outcome = f"no answer in {_CHECK_TIMEOUT_S:g} s"
            results[name] = outcome
            for outcomes in self._outcomes:
                outcomes.count(name, endpoint, well=not outcome)
        return results


async def _set_up(app: web.Application) -> web.AppRunner:
    # A handler ends when its caller has gone: an idle watch would otherwise never notice.
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, handler_cancellation=True)
    await runner.setup()
    return runner
