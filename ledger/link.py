"""How workers and their node's ledger reach each other: in one process, or through a unix socket.

`LocalLink` hands messages over in the same call. `SocketLink` (a worker's end) gathers what is said
in one tick of the event loop into one write at its end. The ledger's end, `serve`, answers all that
one read has brought with one write, at once; what it says unasked (who waited for credit has got
it) is gathered as by a worker.

On the socket a frame is `u32 length | msgpack array of messages`, both ways. A link begins with
`Hello`, in the same frame as everything that the worker has not been answered yet.

Rules
- A broken link says nothing about its worker: it reconnects within `GRACE_SECONDS`, introduces
  itself, and goes on. What it has open stays open meanwhile.
- A dead worker is known for sure: the kernel says so through its pidfd. Everything that it had
  said by then is handled first; what it left open is voided within milliseconds.
- A worker without a pidfd (another kernel than Linux) is dead once the grace is over.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import trio

from ledger import messages
from ledger.client import Listener
from ledger.messages import Message, Reply
from ledger.records import Worker
from ledger.reservation import INSTANCES_MAX
from ledger.server import LedgerServer
from ledger.wire import SocketListener, SocketStream

log = logging.getLogger(__name__)

GRACE_SECONDS = 5.0
RECONNECT_SECONDS = 0.02
LAST_WORDS_SECONDS = 1.0  # for a dead worker's link to be read to its end
LAST_CALL_SECONDS = 0.01  # for a link that it had opened to be accepted
FRAME_MESSAGES_MAX = 1_000
FRAME_BYTES_MAX = 64 << 20
_GRACE_PARTS = 10
_RECEIVE_BYTES = 256 << 10
_LENGTH = struct.Struct("<I")

_GONE = (OSError, trio.BrokenResourceError, trio.ClosedResourceError)
_BROKEN = (OSError, trio.BrokenResourceError, ValueError, msgspec.DecodeError)

_encoder = msgspec.msgpack.Encoder()
_message_decoder: msgspec.msgpack.Decoder[list[Message]] = msgspec.msgpack.Decoder(list[Message])
_reply_decoder: msgspec.msgpack.Decoder[list[Reply]] = msgspec.msgpack.Decoder(list[Reply])


class LinkRejected(Exception):
    """Another worker goes by our number: this one has to start anew."""


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """Which process a worker is; `started` tells it from an earlier one of the same pid."""

    instance: int
    pid: int
    started: int

    @classmethod
    def of_this_process(cls) -> WorkerIdentity:
        """A number of its own, and what the system knows of this process."""
        pid = os.getpid()
        return cls(secrets.randbelow(INSTANCES_MAX - 1) + 1, pid, started_at(pid))


def started_at(pid: int) -> int:
    """When a process began, in ticks since boot; 0 where that is unknown or it has ended."""
    try:
        status = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    # The second field is the name in parentheses, which may contain anything (proc(5)).
    return int(status[status.rindex(b")") + 2 :].split()[19])


def is_alive(worker: Worker) -> bool:
    """Whether a worker that the journal remembers still runs."""
    return worker.pid > 0 and worker.started > 0 and started_at(worker.pid) == worker.started


class LocalLink:
    """The link of a worker that lives and dies with its ledger."""

    sweeps = False

    def __init__(self, server: LedgerServer) -> None:
        self.instance = WorkerIdentity.of_this_process().instance
        self._server = server

    def attach(self, listener: Listener) -> None:
        """Introduce the worker. It has no process of its own, so a restart finds it dead."""
        self.send = listener.hear  # what the server answers
        joined = self._server.join(self, messages.Hello(self.instance, 0, 0, []))
        assert joined, "a new number is taken"

    def post(self, message: Message) -> None:
        """Handled, journalled and answered before this returns, unless it has to wait."""
        self._server.handle(self, (message,))


class _Outgoing(trio.abc.Instrument):
    """What is said in one tick of the event loop, sent when all of it is said.

    Into a socket of ours it goes at the end of the tick, before trio waits for anything: a task
    would need one more tick for each batch, an eighth of all work where sixteen requests share one.
    What a socket does not take at once, which is rare, a task sends, and what is said meanwhile;
    and everything that goes into another stream.
    """

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._socket = stream if isinstance(stream, SocketStream) else None
        self._said: list[Message | Reply] = []
        self._rest = b""  # begun, and to be sent before all else
        self._some = trio.Event()  # for the task to send
        self._busy = False  # somebody sends, and will send what is said meanwhile
        self._token = trio.lowlevel.current_trio_token()

    def say(self, message: Message) -> None:
        """To be sent at the end of this tick."""
        self._said.append(message)
        if self._socket is None:
            self._some.set()

    def add(self, said: Sequence[Message | Reply]) -> None:
        """To be sent at the end of this tick, or by who calls this: if `flush` follows."""
        self._said += said
        if self._socket is None:
            self._some.set()

    async def flush(self) -> None:
        """Send everything that is said by now. A broken link is for the receiving side to see."""
        if self._busy:
            return
        self._busy = True
        try:
            while self._rest or self._said:
                if not self._rest:
                    self._rest, self._said = frames_of(self._said), []
                await self._stream.send_all(self._rest)
                self._rest = b""
        except _GONE:
            self._rest = b""
        finally:
            self._busy = False

    def before_io_wait(self, timeout: float) -> None:
        """The end of a tick, as trio calls it; only its token can wake a task from here."""
        if self._busy or self._rest or not self._said or self._socket is None:
            return
        through = False
        try:
            data, self._said = frames_of(self._said), []
            self._rest = data[self._socket.send_now(data) :]
            through = not self._rest
        except _GONE:
            through = True
        finally:
            if not through:  # also if this fails: trio would just log it, the task raises it
                self._token.run_sync_soon(self._some.set)

    @contextmanager
    def sending(self, nursery: trio.Nursery) -> Iterator[None]:
        """Send for the time of the block, in a task of `nursery` where one is needed."""
        scope = trio.CancelScope()
        nursery.start_soon(self._send, scope)
        if self._socket is not None:
            trio.lowlevel.add_instrument(self)
        try:
            yield
        finally:
            if self._socket is not None:
                with suppress(KeyError):  # trio has done it where the hook failed
                    trio.lowlevel.remove_instrument(self)
            scope.cancel()

    async def _send(self, scope: trio.CancelScope) -> None:
        with scope:
            while True:
                await self._some.wait()
                self._some = trio.Event()
                await self.flush()


def frames_of(said: Sequence[Message | Reply]) -> bytes:
    """Messages as they travel, in as many frames as they need."""
    begins = range(0, len(said), FRAME_MESSAGES_MAX)
    return b"".join([frame(said[begin : begin + FRAME_MESSAGES_MAX]) for begin in begins])


def frame(said: Sequence[Message | Reply]) -> bytes:
    """Messages as they travel."""
    payload = _encoder.encode(said)
    return _LENGTH.pack(len(payload)) + payload


class Frames:
    """Cuts a stream of bytes into the payloads of its frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray) -> Iterator[bytes]:
        """The frames that are complete by now. Raises ValueError for one that is too large."""
        self._buffer += data
        offset = 0
        while len(self._buffer) - offset >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, offset)
            if length > FRAME_BYTES_MAX:
                raise ValueError(f"a frame of {length} bytes")
            end = offset + _LENGTH.size + length
            if end > len(self._buffer):
                break
            yield bytes(self._buffer[offset + _LENGTH.size : end])
            offset = end
        del self._buffer[:offset]


class StreamLink:
    """A worker's end of a link over any stream; `run` keeps it connected."""

    sweeps = True

    def __init__(
        self, connect: Callable[[], Awaitable[trio.abc.Stream]], *, worker: WorkerIdentity
    ) -> None:
        """`connect` raises OSError where there is nobody."""
        self.instance = worker.instance
        self._connect = connect
        self._worker = worker
        self._listener: Listener | None = None
        self._outgoing: _Outgoing | None = None
        self._rejected = False

    def attach(self, listener: Listener) -> None:
        """Say from now on what is heard."""
        self._listener = listener

    def post(self, message: Message) -> None:
        """Sent at the end of this tick; dropped while there is no connection (see `Listener`)."""
        if self._outgoing is not None:
            self._outgoing.say(message)

    @property
    def connected(self) -> bool:
        """Whether the ledger hears us."""
        return self._outgoing is not None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Connect, and again whenever the link breaks; reports started once it was connected.

        Raises LinkRejected.
        """
        assert self._listener is not None, "nobody listens"
        started = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listener.sweep)
            while not self._rejected:
                try:
                    async with await self._connect() as stream:
                        outgoing = self._introduce(stream)
                        if not started:
                            started = True
                            task_status.started()
                        with outgoing.sending(nursery):
                            await self._listen(stream)
                except _BROKEN as error:
                    log.info("no link with the ledger: %s", error)
                finally:
                    self._outgoing = None
                await trio.sleep(RECONNECT_SECONDS)
            nursery.cancel_scope.cancel()
        raise LinkRejected("another worker goes by the same number")

    def _introduce(self, stream: trio.abc.Stream) -> _Outgoing:
        """From here on the messages of this link are complete and in order."""
        assert self._listener is not None, "nobody listens"
        worker = self._worker
        open_reservations, again = self._listener.introduce()
        hello = messages.Hello(worker.instance, worker.pid, worker.started, open_reservations)
        self._outgoing = _Outgoing(stream)
        self._outgoing.add([hello, *again])
        return self._outgoing

    async def _listen(self, stream: trio.abc.Stream) -> None:
        """Until the link ends. Raises BrokenResourceError."""
        assert self._listener is not None, "nobody listens"
        frames = Frames()
        while not self._rejected and (data := await stream.receive_some(_RECEIVE_BYTES)):
            for payload in frames.feed(data):
                replies = _reply_decoder.decode(payload)
                self._rejected = messages.Rejected in map(type, replies)
                self._listener.hear(replies)


class SocketLink(StreamLink):
    """A worker's end of a link through a unix socket."""

    def __init__(self, path: str | Path, *, worker: WorkerIdentity) -> None:
        super().__init__(self._to_socket, worker=worker)
        self._path = path

    async def _to_socket(self) -> SocketStream:
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            peer.setblocking(False)
            peer.connect(os.fspath(self._path))
            await trio.lowlevel.checkpoint()
        except BaseException:
            peer.close()
            raise
        return SocketStream(peer)


# -- the ledger's end ----------------------------------------------------------------------------


class _Door:
    """A worker's link as the server sees it."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.outgoing = _Outgoing(stream)
        self.closed = trio.Event()
        self.stream = stream

    def send(self, replies: Sequence[Reply]) -> None:
        self.outgoing.add(replies)


async def serve(
    server: LedgerServer,
    listening: socket.socket,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve workers until cancelled. `listening` is a unix socket, open and listening."""
    await serve_streams(server, SocketListener(listening), process_ended, task_status=task_status)


async def serve_streams(
    server: LedgerServer,
    listener: trio.abc.Listener[trio.abc.Stream],
    ended: Callable[[Worker], Awaitable[bool]],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve workers over any streams until cancelled.

    `ended` returns True when a worker is dead, and False at once where nobody can tell.
    """
    house = _House(server, ended)
    async with trio.open_nursery() as nursery:
        for worker in server.workers:
            nursery.start_soon(house.watch, worker)
        task_status.started()
        while True:
            stream = await listener.accept()
            nursery.start_soon(house.receive, stream, nursery)


class _House:
    """Every worker of a node and how it is known to be alive."""

    def __init__(self, server: LedgerServer, ended: Callable[[Worker], Awaitable[bool]]) -> None:
        self._server = server
        self._ended = ended
        self._watched: set[int] = set()
        self._doors: dict[int, _Door] = {}

    async def receive(self, stream: trio.abc.Stream, nursery: trio.Nursery) -> None:
        """One link, from its first byte to its last."""
        door = _Door(stream)
        instance = 0
        frames = Frames()
        try:
            async with stream:
                with door.outgoing.sending(nursery):
                    while data := await stream.receive_some(_RECEIVE_BYTES):
                        if instance and self._doors.get(instance) is not door:
                            break  # its worker was taken for dead: this was never said
                        for payload in frames.feed(data):
                            said = _message_decoder.decode(payload)
                            if instance == 0 and said:
                                hello, *said = said
                                instance = await self._welcome(door, hello, nursery)
                            if messages.Hello in map(type, said):
                                raise _Stranger("it introduces itself twice")
                            self._server.handle(door, said)
                        await door.outgoing.flush()  # who does not listen is not heard
        except _GONE:
            pass
        except (ValueError, msgspec.DecodeError, _Stranger) as error:
            log.error("a link is closed: %s", error)
        finally:
            door.closed.set()
            if instance:
                self._server.disconnect(instance, door)

    async def _welcome(self, door: _Door, hello: Message, nursery: trio.Nursery) -> int:
        """Get to know the worker. Raises _Stranger."""
        if not isinstance(hello, messages.Hello):
            raise _Stranger("it does not introduce itself")
        former = self._doors.get(hello.instance)
        if former is not None:  # what it had said is heard before what it says now
            with trio.move_on_after(LAST_WORDS_SECONDS):
                await former.closed.wait()
            await former.stream.aclose()
        if not self._server.join(door, hello):
            await door.stream.send_all(frame([messages.Rejected()]))
            raise _Stranger(f"the number {hello.instance} is taken")
        self._doors[hello.instance] = door
        door.send([messages.Welcome()])
        worker = Worker(hello.instance, hello.pid, hello.started)
        if hello.instance not in self._watched:
            nursery.start_soon(self.watch, worker)
        return hello.instance

    async def watch(self, worker: Worker) -> None:
        """Until the worker has ended, or has been without a link for too long: then void."""
        if worker.instance in self._watched:
            return
        self._watched.add(worker.instance)
        try:
            if await self._ended(worker):
                await self._hear_last_words(worker.instance)
            else:
                await self._until_silent(worker)
            # No checkpoint up to here: nobody can have introduced himself meanwhile.
            self._doors.pop(worker.instance, None)
            self._server.leave(worker.instance)
        finally:
            self._watched.discard(worker.instance)

    async def _hear_last_words(self, instance: int) -> None:
        """A link that the dead had opened may still wait to be accepted, and has an end."""
        await trio.sleep(LAST_CALL_SECONDS)
        for _ in range(_GRACE_PARTS):  # a machine that stood still uses up no more than one
            with trio.move_on_after(LAST_WORDS_SECONDS / _GRACE_PARTS):
                while (door := self._doors.get(instance)) and not door.closed.is_set():
                    await door.closed.wait()
                return

    async def _until_silent(self, worker: Worker) -> None:
        """Without a link for the whole grace, a worker is as good as dead."""
        while True:
            door = self._doors.get(worker.instance)
            if door is not None:
                await door.closed.wait()
            for _ in range(_GRACE_PARTS):  # a machine that stood still uses up no more than one
                await trio.sleep(GRACE_SECONDS / _GRACE_PARTS)
            if self._doors.get(worker.instance) is door:
                log.error("worker %d is not heard of any more", worker.pid)
                return


class _Stranger(Exception):
    """Whoever connected is not a worker of ours."""


async def process_ended(worker: Worker) -> bool:
    """Return True when the process has ended; False at once where the system cannot tell."""
    if not hasattr(os, "pidfd_open"):
        return False
    try:
        pidfd = os.pidfd_open(worker.pid)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    try:
        if started_at(worker.pid) == worker.started:  # else the number is another's by now
            await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)
    return True
