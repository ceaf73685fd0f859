"""Chat completions for tools: asked of this gateway's own data plane, like anybody's.

So they are admitted, limited, reserved and charged there, and nothing of that is repeated here.
With an API key it is that key that asks. A session has no key that the data plane would know: it
gets one in the project that its user names, called "MCP of EMAIL", which ends with the session and
within a day. That key is made of the session's token and this server's secret, so that every
console finds the same one, no copy of it is kept anywhere, and whoever revokes it has ended it for
that session. A new one works at once: a worker that does not know it yet waits until it has asked
the books again (`proxy.authenticate`). So every answer is final here, and told as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import httpcore2
import msgspec
import trio

from console import audit
from console.access import Member, moment
from console.bearers import SessionBearer
from console.context import Console
from console.errors import Refused
from console.keys import called, require_room, state_of
from console.store import Connection
from ledger.accounts import Project
from ledger.directory import Directory
from ledger.keys import of_session

_CONNECTIONS_MAX = 100
_IDLE_SECONDS = 30.0
_ANSWER_SECONDS = 1000.0  # longer than the data plane lets any request last
_KEY_LASTS = timedelta(hours=24)
_KEY_LASTS_MIN = timedelta(hours=12)  # or until the session's end: what is left when it is renewed
_NAME_CHARACTERS_MAX = 100

Role = Literal["system", "user", "assistant"]


class Turn(msgspec.Struct, frozen=True):
    """A message of a conversation."""

    role: Role
    content: str


class Question(msgspec.Struct, frozen=True, omit_defaults=True):
    """A chat completion, as the data plane is asked for one."""

    model: str
    messages: Sequence[Turn]
    max_tokens: int | None = None
    temperature: float | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of it. `cost_usd` is what was charged."""

    text: str
    model: str
    finish_reason: str
    input_tokens: int
    output_tokens: int
    cost_usd: str
    request_id: str


class _Message(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Completion(msgspec.Struct):
    choices: list[_Choice]
    model: str = ""
    usage: _Usage = msgspec.field(default_factory=_Usage)


class _Error(msgspec.Struct):
    message: str
    code: str | None = None


class _Failure(msgspec.Struct):
    error: _Error


class DataPlane:
    """Connections to the data plane, for as long as its block lasts."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._url = f"{console.server.gateway_url}/v1/chat/completions"
        self._pool = httpcore2.AsyncConnectionPool(
            max_connections=_CONNECTIONS_MAX, keepalive_expiry=_IDLE_SECONDS
        )

    async def close(self) -> None:
        """Let all connections go."""
        await self._pool.aclose()

    async def ask(self, key: str, question: Question) -> Reply:
        """Ask with an API key. Refuses as the data plane does, in its words."""
        return _read(await self._post(key, question))

    async def ask_in_session(
        self, who: SessionBearer, member: Member, project: Project, question: Question
    ) -> Reply:
        """Ask with the session's key of a project. Refuses with 403 where that was revoked."""
        return await self.ask(await self._key(who, member, project), question)

    async def _post(self, key: str, question: Question) -> httpcore2.Response:
        headers = [("authorization", f"Bearer {key}"), ("content-type", "application/json")]
        try:
            with trio.fail_after(_ANSWER_SECONDS):
                return await self._pool.request(
                    "POST", self._url, headers=headers, content=msgspec.json.encode(question)
                )
        except (
            httpcore2.NetworkError,
            httpcore2.ProtocolError,
            httpcore2.TimeoutException,
            trio.TooSlowError,
        ) as error:
            raise Refused(
                503, "unavailable", "The gateway did not answer: try again, or look at get_usage."
            ) from error

    async def _key(self, who: SessionBearer, member: Member, project: Project) -> str:
        console, now = self._console, moment(self._console)
        until = min(who.ends_at, now + _KEY_LASTS)
        enough = min(who.ends_at, now + _KEY_LASTS_MIN)
        brand, caller = console.server.brand, who.caller
        plain = of_session(brand, console.secret, who.token, project.project_id)
        name = f"MCP of {caller.called}"

        def work(connection: Connection) -> None:
            directory = Directory.within(connection, secret=console.secret, brand=brand)
            known = directory.find_holder(plain)
            lasts = known is not None and known.key.expires_at
            if known is not None and known.key.revoked_at is None and lasts and lasts >= enough:
                return  # nearly always
            with connection.transaction():
                if known is None or state_of(known.key, now) != "live":
                    require_room(connection, member.account)
                key = directory.session_key(
                    plain,
                    project.project_id,
                    caller.user_id,
                    name[:_NAME_CHARACTERS_MAX],
                    until,
                    now,
                )
                if key is None:
                    raise Refused(
                        403,
                        "permission_denied",
                        "The key of this session was revoked: sign in again, and use a new token.",
                    )
                action = "key.renew" if known else "key.create"
                audit.note(
                    connection, member, action, called(key), {"expires_at": until.isoformat()}
                )

        await console.database.run(work)
        return plain


def _read(response: httpcore2.Response) -> Reply:
    headers = {name.lower(): value.decode("latin-1") for name, value in response.headers}
    if response.status != 200:
        raise _refusal(response, headers.get(b"retry-after", ""))
    answer = msgspec.json.decode(response.content, type=_Completion)
    choice = answer.choices[0]
    return Reply(
        text=choice.message.content or choice.message.refusal or "",
        model=answer.model,
        finish_reason=choice.finish_reason or "",
        input_tokens=answer.usage.prompt_tokens,
        output_tokens=answer.usage.completion_tokens,
        cost_usd=headers.get(b"x-farebox-cost-usd", ""),
        request_id=headers.get(b"x-request-id", ""),
    )


def _refusal(response: httpcore2.Response, retry_after: str) -> Refused:
    """What the data plane refused, in its own words."""
    try:
        error = msgspec.json.decode(response.content, type=_Failure).error
    except msgspec.DecodeError:
        error = _Error(f"The gateway answered with status {response.status}.")
    again = f" Try again after {retry_after} seconds." if retry_after else ""
    code = error.code or "error"
    return Refused(response.status, code, f"{error.message} ({response.status} {code}){again}")
