"""A child of the supervisor: a place that one process after another fills, and restarts.

`Child` starts a process, tells it what to be, hears what it reports, and starts another where one
ends without having been told to. What rules that is said in `farebox.supervise`.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio

from farebox.control import (
    Ask,
    BeWorker,
    Channel,
    ChannelClosed,
    Cut,
    Drain,
    FromChild,
    Ready,
    Refused,
    Reload,
    Reloaded,
    Report,
    Served,
    Start,
    ToChild,
    supervisors_end,
)
from farebox.totals import Report as Figures
from farebox.totals import Totals, value_of

_LAST_WORDS_SECONDS = 2.0
_ASKS_MAX = 10
_SILENT_POLLS = 3  # so many without a word are told
_GRACE_SECONDS = 20.0  # beyond its own deadlines, before a child that does not end is killed


# -- restarts -------------------------------------------------------------------------------------


class Backoff:
    """Pauses before restarts, so that a start follows the last one after a time at the earliest.

    That time is none at first, then doubles, and is none again after a quiet life.
    """

    FIRST_SECONDS = 0.1
    MOST_SECONDS = 5.0
    QUIET_SECONDS = 10.0

    def __init__(self) -> None:
        self._next = 0.0

    def pause(self, lived_seconds: float) -> float:
        """How long to wait, now that a child has ended that lived so long."""
        apart = 0.0 if lived_seconds >= self.QUIET_SECONDS else self._next
        self._next = min(max(2 * apart, self.FIRST_SECONDS), self.MOST_SECONDS)
        return max(apart - lived_seconds, 0.0)


def told(returncode: int) -> str:
    """How a process ended, in words."""
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-returncode).name}"
    return f"was ended by signal {-returncode}"


class Bell:
    """Wakes whoever waits for a change among the children."""

    def __init__(self) -> None:
        self._rung = trio.Event()

    def ring(self) -> None:
        """Something has changed."""
        self._rung.set()
        self._rung = trio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a change after which `condition` holds."""
        while not condition():
            await self._rung.wait()


# -- one child ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ChildStatus:
    """A child for whoever looks at `/status`. `requests` counts those of this process alone."""

    name: str
    pid: int
    ready: bool
    restarts: int
    open_streams: int
    requests: int
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Recruit:
    """A process that waits to be told what to be."""

    process: trio.Process
    channel: Channel[FromChild]

    async def dismiss(self) -> None:
        """See to it that it has ended."""
        self.process.kill()
        self.channel.close()
        with trio.CancelScope(shield=True):
            await self.process.wait()


@dataclass(slots=True)
class _Life:
    """One process in the place of a child."""

    process: trio.Process
    channel: Channel[FromChild]
    ready: bool = False
    heard: bool = True
    silent_polls: int = 0
    promised: int = 0
    version: int = 0
    asked: int = 0
    answered: int = 0
    problems: tuple[str, ...] = ()
    figures: Figures = ()
    refused: tuple[str, ...] = ()


class Child:
    """A place among the children, filled by one process after another.

    `start` says at each start what the process is to be, and `inherited` what it is handed;
    `wait` holds it back until there is something to do. With `once`, success is the end. With
    `understudied`, the next process is loaded while the present one serves. What it refuses at its
    first start it will always refuse: that is the end as well.
    """

    def __init__(
        self,
        name: str,
        totals: Totals,
        bell: Bell,
        start: Callable[[], Start],
        inherited: Sequence[int],
        *,
        wait: trio.Event | None = None,
        once: bool = False,
        understudied: bool = False,
    ) -> None:
        self.name = name
        self.restarts = 0
        self.refused: tuple[str, ...] = ()
        self._totals = totals
        self._bell = bell
        self._start = start
        self._inherited = tuple(inherited)
        self._wait = wait
        self._once = once
        self._renewed = False
        self._understudied = understudied
        self._understudy: _Recruit | None = None
        self._life: _Life | None = None
        self._ending = trio.Event()
        self._served = False
        self._seconds_to_end = 0.0

    # -- what others see ----------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether a process is there that does what it should."""
        return self._life is not None and self._life.ready

    def problems(self) -> list[str]:
        """Why traffic cannot rely on it."""
        life = self._life
        if life is None or not life.ready:
            return [f"{self.name}: starting"]
        if life.silent_polls >= _SILENT_POLLS:
            return [f"{self.name}: does not answer (process {life.process.pid})"]
        return [f"{self.name}: {problem}" for problem in life.problems]

    def status(self) -> ChildStatus:
        """A snapshot."""
        life = self._life
        return ChildStatus(
            name=self.name,
            pid=life.process.pid if life else 0,
            ready=self.ready,
            restarts=self.restarts,
            open_streams=int(value_of(life.figures, "farebox_open_streams")) if life else 0,
            requests=int(value_of(life.figures, "farebox_requests_total")) if life else 0,
            problems=life.problems if life else (),
        )

    async def look(self) -> None:
        """Have it report, and wait for that; returns at once where nobody can answer."""
        life = self._life
        if life is None or not life.ready or life.asked - life.answered >= _ASKS_MAX:
            return
        life.asked += 1
        number = life.asked
        with contextlib.suppress(ChannelClosed):
            await life.channel.send(Ask(number=number))
            await self._bell.until(lambda: life.answered >= number or self._life is not life)

    def judge(self, polls_max: int) -> None:
        """To be called after each poll: kill a process that left so many of them unanswered."""
        life = self._life
        if life is None or not life.ready:
            return
        life.silent_polls = 0 if life.heard else life.silent_polls + 1
        life.heard = False
        if life.silent_polls == polls_max:
            sys.stderr.write(
                f"{self.name} (process {life.process.pid}) does not answer; killing it.\n"
            )
            life.process.kill()

    async def reload(self, served: Served) -> None:
        """Hand a changed configuration over, and wait until its new requests see it."""
        if (life := self._life) is not None:
            await self._tell(life, Reload(served=served))
        await self._bell.until(
            lambda: self._life is not None and self._life.version >= served.version
        )

    async def renew(self) -> None:
        """Let its process finish what runs, and another take its place, told anew what to be."""
        if (life := self._life) is not None:
            self._renewed = True
            await self._tell(life, Drain())

    async def drain(self, seconds: float) -> None:
        """Let it finish what runs, for `seconds` at most by its own clock; it is not replaced."""
        self._seconds_to_end = seconds + _GRACE_SECONDS
        self._ending.set()
        if (life := self._life) is not None:
            await self._tell(life, Drain())

    async def cut(self) -> None:
        """Let it finish now."""
        if (life := self._life) is not None:
            await self._tell(life, Cut())

    async def _tell(self, life: _Life, message: ToChild) -> None:
        with contextlib.suppress(ChannelClosed):  # its end is noticed elsewhere
            await life.channel.send(message)

    # -- its processes ------------------------------------------------------------------------

    async def keep(self) -> None:
        """Keep a process in this place, until one ends that was told to. Cancelled: kill it."""
        try:
            await self._keep()
        finally:
            if self._understudy is not None:
                await self._understudy.dismiss()

    async def _keep(self) -> None:
        backoff = Backoff()
        while not self._ending.is_set():
            began = trio.current_time()
            pid, returncode, refused = await self._live()
            if self._ending.is_set() or (self._once and returncode == 0):
                return
            if returncode == 0 and self._renewed:
                self._renewed = False
                continue  # it was told to: no fault, and nothing to wait for
            if refused and not self._served:
                self.refused = refused
                self._bell.ring()
                return
            pause = backoff.pause(trio.current_time() - began)
            self.restarts += 1
            why = "".join(f"{problem}\n" for problem in refused)
            later = f" in {pause:g} seconds" if pause else ""
            sys.stderr.write(
                f"{why}{self.name} (process {pid}) {told(returncode)}; starting it again{later}.\n"
            )
            with trio.move_on_after(pause):
                await self._ending.wait()

    async def _live(self) -> tuple[int, int, tuple[str, ...]]:
        """One process from start to end: its number, how it ended, and what it refused."""
        recruit = await self._next()
        process = recruit.process
        life = self._life = _Life(process, recruit.channel)
        try:
            async with trio.open_nursery() as nursery:
                heard = trio.Event()
                nursery.start_soon(self._talk, life, heard)
                nursery.start_soon(self._kill_when_late, process)
                if self._understudied:
                    nursery.start_soon(self._keep_understudy, life)
                await process.wait()
                with trio.move_on_after(_LAST_WORDS_SECONDS):
                    await heard.wait()
                nursery.cancel_scope.cancel()
        finally:
            await recruit.dismiss()
            self._totals.retire(life.channel)
            self._life = None
            self._bell.ring()
        assert process.returncode is not None
        return process.pid, process.returncode, life.refused

    async def _next(self) -> _Recruit:
        """Who takes the place now."""
        waiting, self._understudy = self._understudy, None
        if waiting is None:
            return await self._recruit()
        if waiting.process.poll() is None:
            return waiting
        await waiting.dismiss()
        return await self._recruit()

    async def _keep_understudy(self, life: _Life) -> None:
        """Have somebody ready to take the place, once there is time for that."""
        await self._bell.until(lambda: life.ready)
        backoff = Backoff()
        while True:
            began = trio.current_time()
            self._understudy = await self._recruit()
            await self._understudy.process.wait()
            await self._understudy.dismiss()
            self._understudy = None
            await trio.sleep(backoff.pause(trio.current_time() - began))

    async def _recruit(self) -> _Recruit:
        ours, theirs = socket.socketpair()
        channel = supervisors_end(ours)
        try:
            with theirs:
                process = await trio.lowlevel.open_process(
                    [sys.executable, "-m", "farebox.child", self.name, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    pass_fds=[theirs.fileno(), *self._inherited],
                    start_new_session=True,  # a Ctrl-C at the terminal is the supervisor's
                )
        except BaseException:
            channel.close()
            raise
        return _Recruit(process, channel)

    async def _talk(self, life: _Life, heard: trio.Event) -> None:
        """Tell it what to be, then listen until it is gone."""
        if self._wait is not None:
            await self._wait.wait()
        if self._ending.is_set():
            await self._tell(life, Drain())
        else:
            start = self._start()
            life.promised = start.served.version if isinstance(start, BeWorker) else 0
            await self._tell(life, start)
        while (message := await life.channel.receive()) is not None:
            self._hear(life, message)
            self._bell.ring()
        heard.set()

    def _hear(self, life: _Life, message: FromChild) -> None:
        life.heard = True
        match message:
            case Ready():
                life.ready = self._served = True
                life.version = max(life.version, life.promised)
            case Reloaded(version=version):
                life.version = max(life.version, version)
            case Refused(problems=problems):
                life.refused = problems
            case Report():
                life.answered = max(life.answered, message.number)
                life.problems = message.problems
                life.figures = message.families
                self._totals.update(life.channel, message.families)

    async def _kill_when_late(self, process: trio.Process) -> None:
        await self._ending.wait()
        await trio.sleep(self._seconds_to_end)
        sys.stderr.write(f"{self.name} (process {process.pid}) does not end; killing it.\n")
        process.kill()
