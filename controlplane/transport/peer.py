"""Links between replicas: TCP connections that carry checked frames, one outgoing link per peer.

Owns dialling, accepting, and keeping a link alive. Knows frames, not consensus: ``raft`` messages go to a callback.
Bytes are in ``peer_connection``, who is believed in ``peer_handshake``, requests and answers in ``peer_calls``.

- A link carries one direction. We dial every peer and send on that connection; its frames come on the one it dialled.
  Only the answers to the handshake and to pings travel back on a dialled connection.
- Nobody is believed before a correct ``Hello``; until then a connection may send one small frame, within a few seconds.
- A member that we have not heard of is a guest (see ``peer_handshake``): we dial it where it says it is reached, for as
  long as its own connection lasts or until it is a peer.
- A newer connection of a peer replaces its older one, whose remaining frames are dropped: no stale frame arrives.
- A link whose queue is full drops frames and counts them (Raft sends again); it never blocks and never grows.
- When a link breaks and the peer's address refuses at once, its process is dead: ``peer_died`` tells.
- With TLS both ends show a member's certificate, and it must be that of the member they say or are expected to be;
  any other connection is closed before a byte of it is looked at.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import defaultdict
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from controlplane.base.aio import wait_event
from controlplane.base.clock import Clock
from controlplane.base.errors import ConfigError
from controlplane.base.identity import IdentityError
from controlplane.base.limits import FRAME_BYTES_MAX
from controlplane.base.rand import Rand
from controlplane.pb.quarterdeck.internal.v1.raft_pb2 import Frame, HelloAck, Ping, Pong, RaftMessage
from controlplane.transport import peer_metrics as metrics
from controlplane.transport.frames import FrameError
from controlplane.transport.peer_calls import CallHandler, PeerCalls
from controlplane.transport.peer_connection import PeerConnection
from controlplane.transport.peer_handshake import Handshake
from controlplane.transport.tls import Reloader
from controlplane.transport.tls_listener import TlsListener

__all__ = ["PeerAddress", "PeerEvents", "PeerLinks"]

_log = logging.getLogger("quarterdeck.peer")

_HANDSHAKE_TIMEOUT_S = 5.0
_DIAL_TIMEOUT_S = 1.0
_BACKOFF_MIN_S = 0.02
_BACKOFF_MAX_S = 1.0
_PING_PERIOD_S = 1.0
_SILENCE_MAX_S = 3.0
#: Connections that have not said who they are.
_STRANGERS_MAX = 32


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """A member as its peers reach it. ``address`` is ``host:port``; ``name`` is empty until it has first started."""

    id: int
    name: str
    address: str

    def split(self) -> tuple[str, int]:
        host, _, port = self.address.rpartition(":")
        return host.strip("[]"), int(port)


class PeerEvents(Protocol):
    """Who hears of messages and links. Called on the loop; must not raise."""

    def receive(self, peer_id: int, message: RaftMessage, size_bytes: int) -> None: ...
    def link_up(self, peer_id: int) -> None: ...
    def link_down(self, peer_id: int) -> None: ...
    def peer_died(self, peer_id: int) -> None: ...


class PeerLinks:
    """All links of one replica. ``start`` binds and dials; ``stop`` closes everything.

    Args:
        cluster_id: only members of the same cluster are spoken to.
        me: this replica; its address is bound.
        peers: the others.
        events: who hears.
        clock, rand: back-off and ping times, and this life's epoch.
        tls: this member's certificate; None speaks plainly, to whoever says the right name.
        removed: ids that were members once -> the log entry that ended it: they are told.
        empty_disk: this member's data directory was made in this start.
        on_outcast: hears when a peer says that we were removed, or must be replaced.
        dial: where to connect to instead of some peers' addresses, both ``host:port``: a proxy, a tunnel.
    """

    def __init__(
        self,
        *,
        cluster_id: int,
        me: PeerAddress,
        peers: Iterable[PeerAddress],
        events: PeerEvents,
        clock: Clock,
        rand: Rand,
        tls: Reloader | None = None,
        removed: Mapping[int, int] | None = None,
        empty_disk: bool = False,
        on_outcast: Callable[[PeerAddress, HelloAck], None] = lambda peer, ack: None,
        dial: Mapping[str, str] | None = None,
    ) -> None:
        self._me = me
        self._peers = {peer.id: peer for peer in peers}
        self._guests: dict[int, PeerAddress] = {}
        self._events = events
        self._clock = clock
        self._rand = rand
        self._handshake = Handshake(
            cluster_id=cluster_id,
            member_id=me.id,
            name=me.name,
            address=me.address,
            epoch=rand.token(8),
            empty_disk=empty_disk,
            certified=tls is not None,
        )
        self._handshake.set_peers({peer.id: peer.name for peer in self._peers.values()}, removed or {})
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._tls_listener: TlsListener | None = None
        self._strangers: set[PeerConnection] = set()
        self._incoming: dict[int, PeerConnection] = {}
        self._links: dict[int, PeerConnection] = {}
        self._calls = PeerCalls(
            me=me.name,
            first_id=int.from_bytes(rand.token(6), "big"),
            send=self._send,
            name=self._handshake.name,
            spawn=self._spawn,
        )
        self._on_outcast = on_outcast
        self._dials = dict(dial or {})
        self._revisions: dict[int, int] = {}
        self._keepers: dict[int, asyncio.Task[None]] = {}
        #: Set when the peer has called us: so it is up, and to wait on before it is dialled again is of no use.
        self._called: defaultdict[int, asyncio.Event] = defaultdict(asyncio.Event)
        self._peer_counts: dict[int, metrics.PeerCounts] = {}
        #: From the start on and until the end begins: only then tasks are made for links.
        self._running = False
        self._pings: dict[int, float] = {}
        self._ping_seq = 0
        self._tasks: set[asyncio.Task[None]] = set()

    # -- life --------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Bind the peer address and begin to dial.

        Raises:
            ConfigError: the address cannot be bound; says why.
        """
        host, port = self._me.split()
        self._running = True
        try:
            await self._listen(host, port)
        except OSError as error:
            raise ConfigError(
                f"peer address {self._me.address} cannot be bound: {error.strerror or error}; "
                f"is another replica running on it?"
            ) from error
        self._keep_links()

    def set_peers(
        self, peers: Iterable[PeerAddress], removed: Mapping[int, int], *, keep: Collection[int] = ()
    ) -> None:
        """These are the other members from now on: dial those that are new or have moved, part from those that left,
        but for those to ``keep`` a while. ``removed``: see the class."""
        kept = {peer_id: peer for peer_id, peer in self._peers.items() if peer_id in keep}
        before, self._peers = self._peers | self._guests, kept | {peer.id: peer for peer in peers}
        self._handshake.set_peers({peer.id: peer.name for peer in self._peers.values()}, removed)
        self._guests = {g: guest for g, guest in self._guests.items() if self._handshake.is_guest(g)}
        spoken_to = self._peers | self._guests
        for peer_id, peer in before.items():
            now = spoken_to.get(peer_id)
            moved = now is None or now.address != peer.address
            if moved and (keeper := self._keepers.pop(peer_id, None)) is not None:
                keeper.cancel()
            connection = self._incoming.get(peer_id)
            if connection is not None and (now is None or not self._handshake.is_holder(peer_id, connection.certified)):
                del self._incoming[peer_id]
                connection.close()
        if self._running:
            self._keep_links()

    def _keep_links(self) -> None:
        for peer_id, peer in self._peers.items():
            if peer_id not in self._keepers:
                self._keepers[peer_id] = self._spawn(self._keep_link(peer))

    def revision(self, peer_id: int) -> int:
        """What the peer understands beyond the protocol version (see Hello.revision), as of its present link."""
        return self._revisions.get(peer_id, 0)

    def below(self, revision: int) -> list[int]:
        """Peers that understood less than that when they were last linked to, in this life of ours. One that was not
        reached yet is not among them: nothing is known of it."""
        return [peer_id for peer_id, known in self._revisions.items() if known < revision and peer_id in self._peers]

    async def _listen(self, host: str, port: int) -> None:
        def stranger() -> PeerConnection:
            return PeerConnection(self._on_incoming_frame, self._on_stranger)

        if self._tls is None:
            self._server = await asyncio.get_running_loop().create_server(stranger, host, port, backlog=64)
            return
        self._tls_listener = TlsListener(
            "peer",
            stranger,
            self._tls.server(),
            handshakes_max=_STRANGERS_MAX,
            handshake_timeout_s=_HANDSHAKE_TIMEOUT_S,
        )
        self._tls_listener.start(host, port)

    async def stop(self) -> None:
        """Close every link and the listener. Waiting calls fail."""
        self._running = False
        if self._server is not None:
            self._server.close()
        if self._tls_listener is not None:
            await self._tls_listener.stop()
        connections = [*self._strangers, *self._incoming.values(), *self._links.values()]
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in connections:
            connection.close()
        self._calls.stop()

    # -- sending -----------------------------------------------------------------------------------------------

    def send(self, peer_id: int, message: RaftMessage) -> bool:
        """Queue a message on the peer's link; False (and counted) when there is none or its queue is full."""
        return self._send(peer_id, message)

    def serve(self, channel: str, handler: CallHandler) -> None:
        """Answer peers' requests on ``channel``. The handler gets the asking peer's name and the payload."""
        self._calls.serve(channel, handler)

    def call(self, peer_id: int, channel: str, payload: bytes, *, timeout_ms: int) -> Coroutine[None, None, bytes]:
        """Ask a peer; see ``PeerCalls.call``."""
        return self._calls.call(peer_id, channel, payload, timeout_ms=timeout_ms)

    def _send(self, peer_id: int, frame: Frame | RaftMessage) -> bool:
        connection = self._links.get(peer_id)
        taken = connection.send(frame) if connection is not None else 0
        if taken:
            self._counts(peer_id).sent.inc(taken)
        else:
            metrics.SENT_FAILURES.labels(f"{peer_id:x}").inc()
        return taken > 0

    def _counts(self, peer_id: int) -> metrics.PeerCounts:
        found = self._peer_counts.get(peer_id)
        if found is None:
            found = self._peer_counts[peer_id] = metrics.PeerCounts.of(peer_id)
        return found

    # -- outgoing ----------------------------------------------------------------------------------------------

    async def _keep_link(self, peer: PeerAddress) -> None:
        backoff_s = _BACKOFF_MIN_S
        just_lost = False
        called = self._called[peer.id]
        while True:
            called.clear()
            try:
                connection = await self._dial(peer)
            except TimeoutError:
                just_lost = False
            except (ssl.SSLError, IdentityError) as error:  # somebody lives there, but not the peer we look for
                just_lost = False
                metrics.REFUSED.labels("certificate").inc()
                _log.error("peer not trusted name=%s address=%s error=%r", peer.name, peer.address, str(error))
            except (OSError, FrameError, UnicodeError) as error:  # UnicodeError: no name of a host can be like that
                if just_lost:
                    _log.info("peer is dead name=%s error=%r", self._handshake.name(peer.id), str(error))
                    self._events.peer_died(peer.id)
                just_lost = False
            else:
                backoff_s = _BACKOFF_MIN_S
                await self._use(peer, connection)
                just_lost = True
                continue
            await wait_event(called, self._clock, backoff_s * (0.5 + self._rand.random()))
            backoff_s = min(2 * backoff_s, _BACKOFF_MAX_S)

    async def _dial(self, peer: PeerAddress) -> PeerConnection:
        """Connect and shake hands. Raises OSError, TimeoutError, or FrameError when refused."""
        host, port = replace(peer, address=self._dials.get(peer.address, peer.address)).split()
        welcome: asyncio.Future[HelloAck] = asyncio.get_running_loop().create_future()

        def on_frame(connection: PeerConnection, frame: Frame) -> None:
            connection.heard_at = self._clock.monotonic()
            if not welcome.done() and frame.HasField("hello_ack"):
                welcome.set_result(frame.hello_ack)
            elif frame.HasField("pong"):
                self._on_pong(peer.id, frame.pong)
            else:
                raise FrameError(f"unexpected {frame.WhichOneof('kind')} on a dialled connection")

        connection: PeerConnection | None = None
        try:
            async with asyncio.timeout(_DIAL_TIMEOUT_S):
                loop = asyncio.get_running_loop()
                context = self._tls.client if self._tls is not None else None
                _, connection = await loop.create_connection(
                    lambda: PeerConnection(on_frame, lambda c: None), host, port, ssl=context
                )
                if self._tls is not None and not self._handshake.is_holder(
                    peer.id, (holder := connection.holder()).name
                ):
                    raise IdentityError(f"{peer.address} has the certificate of {holder}, not of {peer.name}")
                connection.send(Frame(hello=self._handshake.hello(peer.id)))
                await _first(welcome, connection.lost)
            if not welcome.done():
                raise ConnectionResetError(f"{peer.name} closed the connection during the handshake")
            ack = welcome.result()
            if ack.refused:
                _log.error("peer refuses us name=%s address=%s reason=%r", peer.name, peer.address, ack.refused)
                if ack.removed_at_index or ack.disk_lost:
                    self._on_outcast(peer, ack)
                raise FrameError(ack.refused)
            if ack.member_id != peer.id:
                raise FrameError(f"{peer.address} is member {ack.member_id:x}, not {peer.name} ({peer.id:x})")
        except BaseException:
            if connection is not None:
                connection.abort()
            raise
        connection.peer_id, connection.epoch = peer.id, ack.epoch
        self._revisions[peer.id] = ack.revision
        return connection

    async def _use(self, peer: PeerAddress, connection: PeerConnection) -> None:
        """Keep the link until it is lost or silent."""
        connection.heard_at = self._clock.monotonic()
        self._links[peer.id] = connection
        _log.info("link up peer=%s address=%s", self._handshake.name(peer.id), peer.address)
        self._events.link_up(peer.id)
        pinging = asyncio.ensure_future(self._ping(connection))
        try:
            await _first(connection.lost, pinging)
        finally:
            pinging.cancel()
            connection.abort()
            if self._links.get(peer.id) is connection:
                del self._links[peer.id]
            _log.info("link down peer=%s address=%s", self._handshake.name(peer.id), peer.address)
            self._events.link_down(peer.id)
            self._calls.link_broke(peer.id)

    async def _ping(self, connection: PeerConnection) -> None:
        """Ping until the peer has been silent for too long (its host is gone, or a middle box forgot us)."""
        while self._clock.monotonic() - connection.heard_at < _SILENCE_MAX_S:
            self._ping_seq += 1
            self._pings = {s: t for s, t in self._pings.items() if self._clock.monotonic() - t < _SILENCE_MAX_S}
            self._pings[self._ping_seq] = self._clock.monotonic()
            connection.send(Frame(ping=Ping(seq=self._ping_seq)))
            await self._clock.sleep(_PING_PERIOD_S)

    def _on_pong(self, peer_id: int, pong: Pong) -> None:
        sent_at = self._pings.pop(pong.seq, None)
        if sent_at is not None:
            metrics.ROUND_TRIP_SECONDS.labels(f"{peer_id:x}").observe(self._clock.monotonic() - sent_at)

    # -- incoming ----------------------------------------------------------------------------------------------

    def _on_stranger(self, connection: PeerConnection) -> None:
        if len(self._strangers) >= _STRANGERS_MAX:
            metrics.REFUSED.labels("too_many").inc()
            connection.abort()
            return
        if self._tls is not None:
            try:
                connection.certified = connection.holder().name
            except IdentityError as error:
                metrics.REFUSED.labels("certificate").inc()
                _log.warning("connection refused remote=%s reason=%r", connection.remote, str(error))
                connection.abort()
                return
        self._strangers.add(connection)
        self._spawn(self._see_out_stranger(connection))

    async def _see_out_stranger(self, connection: PeerConnection) -> None:
        sleeper = asyncio.ensure_future(self._clock.sleep(_HANDSHAKE_TIMEOUT_S))
        try:
            await _first(sleeper, connection.lost)
            if connection in self._strangers:
                if not connection.closing:
                    metrics.REFUSED.labels("no_hello").inc()
                    _log.warning("no hello in time remote=%s", connection.remote)
                connection.abort()
                self._strangers.discard(connection)
            await connection.lost
        finally:
            sleeper.cancel()
            if self._incoming.get(connection.peer_id) is connection:
                del self._incoming[connection.peer_id]
                self._see_out_guest(connection.peer_id)

    def _on_incoming_frame(self, connection: PeerConnection, frame: Frame) -> None:
        if not self._running:
            return
        if connection in self._strangers:
            self._welcome(connection, frame)
            return
        peer_id = connection.peer_id
        if self._incoming.get(peer_id) is not connection:
            return  # replaced by a newer connection of this peer, or refused: what is left in it is stale
        self._counts(peer_id).received.inc(connection.received)
        connection.received = 0
        kind = frame.WhichOneof("kind")
        if kind == "raft":
            self._events.receive(peer_id, frame.raft, connection.frame_bytes)
        elif kind == "ping":
            connection.send(Frame(pong=Pong(seq=frame.ping.seq)))
        elif kind == "call_request":
            self._calls.on_request(peer_id, frame.call_request)
        elif kind == "call_response":
            self._calls.on_response(peer_id, frame.call_response)
        else:
            raise FrameError(f"unexpected {kind} from {self._handshake.name(peer_id)}")

    def _welcome(self, connection: PeerConnection, frame: Frame) -> None:
        hello = frame.hello
        ack = self._handshake.answer(frame, connection.certified)
        self._strangers.discard(connection)
        connection.send(Frame(hello_ack=ack))
        if ack.refused:
            metrics.REFUSED.labels("handshake").inc()
            _log.warning("connection refused remote=%s reason=%r", connection.remote, ack.refused)
            connection.close()
            return
        connection.peer_id, connection.epoch = hello.member_id, hello.epoch
        connection.frame_bytes_max = FRAME_BYTES_MAX
        older = self._incoming.get(hello.member_id)
        self._incoming[hello.member_id] = connection
        self._called[hello.member_id].set()
        if hello.member_id not in self._peers:
            self._receive_guest(PeerAddress(hello.member_id, hello.member_name, hello.peer_address))
        if older is not None:
            older.abort()

    def _receive_guest(self, guest: PeerAddress) -> None:
        if self._guests.get(guest.id) == guest:
            return
        _log.info("guest: not known as a member yet name=%s id=%x address=%s", guest.name, guest.id, guest.address)
        if (keeper := self._keepers.pop(guest.id, None)) is not None:
            keeper.cancel()
        self._guests[guest.id] = guest
        self._keepers[guest.id] = self._spawn(self._keep_link(guest))

    def _see_out_guest(self, guest_id: int) -> None:
        if self._guests.pop(guest_id, None) is not None:
            self._handshake.see_out(guest_id)
            self._keepers.pop(guest_id).cancel()
            self._called.pop(guest_id, None)
            self._revisions.pop(guest_id, None)

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _first(*futures: asyncio.Future[Any]) -> None:
    """Return when one of them is done; the others go on."""
    await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
