"""Upstreams that fail, through the official SDKs as applications use them: with their own retries.

Each case is one way to fail, alone or with a well upstream behind it, asked plainly or streamed,
through one of four APIs. It has a provider and a model of its own, so that no case feels another's
open circuit, and all of them run at once. What is compared: what the application gets, and how
often the provider was asked for it, which bounds what retries of retries may add up to.
"""

from __future__ import annotations

import itertools
import random
import re
import socket
import ssl
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import anthropic
import openai
import pytest
import trustme
from google import genai
from google.genai import errors as gemini_errors

from tests.fakes.director import Sandbox
from tests.fakes.process import LOOPBACK, SPEAKERS, GatewayProcess, sandbox_process, serving
from tests.sdk.conftest import gemini_client_of

RETRIES = 2  # the SDKs' own default
AT_ONCE = 48
TEXT = "seven words that only a reader repeats"
HANDSHAKE_SECONDS = 5
BUSY = re.compile("The gateway is overloaded|Whether this call can be paid for is not known now")
BUSY_TRIES = 20
BUSY_SECONDS = 1
ATTEMPTS = re.compile(
    r'farebox_upstream_attempts_total\{(?=.*provider="(?P<provider>[^"]*)")'
    r'(?=.*outcome="(?P<outcome>[^"]*)").*\}'
)

Kind = str  # "plain" or "stream"


# -- how each asks --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sdks:
    """A client of each package; `of_…_once` do not retry."""

    of_openai: openai.OpenAI
    of_openai_once: openai.OpenAI
    of_anthropic: anthropic.Anthropic
    of_anthropic_once: anthropic.Anthropic
    of_google: genai.Client

    def close(self) -> None:
        self.of_openai.close()
        self.of_openai_once.close()
        self.of_anthropic.close()
        self.of_anthropic_once.close()
        self.of_google.close()


def sdks_of(gateway: GatewayProcess, key: str) -> Sdks:
    v1 = f"{gateway.base_url}/v1"
    return Sdks(
        openai.OpenAI(base_url=v1, api_key=key, max_retries=RETRIES),
        openai.OpenAI(base_url=v1, api_key=key, max_retries=0),
        anthropic.Anthropic(base_url=gateway.base_url, api_key=key, max_retries=RETRIES),
        anthropic.Anthropic(base_url=gateway.base_url, api_key=key, max_retries=0),
        gemini_client_of(gateway, key),
    )


def chat(sdks: Sdks, model: str, *, stream: bool, retry: bool) -> str:
    client = sdks.of_openai if retry else sdks.of_openai_once
    messages = [{"role": "user", "content": TEXT}]
    if stream:
        with client.chat.completions.stream(model=model, messages=messages) as events:  # type: ignore[arg-type] # a message
            return events.get_final_completion().choices[0].message.content or ""
    answer = client.chat.completions.create(model=model, messages=messages)  # type: ignore[arg-type] # a message
    return answer.choices[0].message.content or ""


def responses(sdks: Sdks, model: str, *, stream: bool, retry: bool) -> str:
    client = sdks.of_openai if retry else sdks.of_openai_once
    if stream:
        with client.responses.stream(model=model, input=TEXT) as events:
            return events.get_final_response().output_text
    return client.responses.create(model=model, input=TEXT).output_text


def messages(sdks: Sdks, model: str, *, stream: bool, retry: bool) -> str:
    client = sdks.of_anthropic if retry else sdks.of_anthropic_once
    asked: list[anthropic.types.MessageParam] = [{"role": "user", "content": TEXT}]
    if stream:
        with client.messages.stream(model=model, max_tokens=100, messages=asked) as events:
            return _said(events.get_final_message())
    return _said(client.messages.create(model=model, max_tokens=100, messages=asked))


def _said(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


def gemini(sdks: Sdks, model: str, *, stream: bool, retry: bool) -> str:
    """Google's package does not retry."""
    models = sdks.of_google.models
    if stream:
        return "".join(
            part.text or "" for part in models.generate_content_stream(model=model, contents=TEXT)
        )
    return models.generate_content(model=model, contents=TEXT).text or ""


class Ask(Protocol):
    """The text of an answer. Raises what the package raises."""

    def __call__(self, sdks: Sdks, model: str, *, stream: bool, retry: bool) -> str: ...


APIS: Mapping[str, Ask] = {
    "chat": chat,
    "responses": responses,
    "messages": messages,
    "gemini": gemini,
}


# -- what upstreams do, and what comes of it ------------------------------------------------------


@dataclass(frozen=True)
class Served:
    """The application gets the right answer, for so many requests at least and at most."""

    first: tuple[int, int]
    second: int = 0


@dataclass(frozen=True)
class Raises:
    """It gets an error with one of these statuses; `tries` says how often one of its own requests
    asks the provider, `most` bounds them all."""

    statuses: tuple[int, ...]
    least: int
    most: int


@dataclass(frozen=True)
class Breaks:
    """A stream has begun, and its end is an error; nobody is asked again."""


Result = Served | Raises | Breaks


@dataclass(frozen=True)
class Row:
    """A behaviour of the sandbox. `retry` is False where the SDK would wait for a minute, `speaks`
    names the one protocol that has the behaviour. Where it is not the sandbox that `address` leads
    to, `outcome` is what the gateway calls what happens there."""

    behaviour: str
    alone: Result
    pair: Result
    kinds: tuple[Kind, ...] = ("plain", "stream")
    retry: bool = True
    speaks: str = ""
    address: str = "{origin}"
    outcome: str = ""


BY_SECOND = Served((1, 1), 1)
UNREACHED = Served((0, 0), 1)
AGAIN = Served((2, 2))
# Three attempts by the gateway, two more when the SDK asks again; then the circuit is open, and
# each retry may find it half open.
DOWN = Raises((502, 503), 1, 7)
CALLED_BACK = Raises((503,), 1, 9)  # each of them when the provider said
SLOW = Raises((504,), 1, 3)
GONE = Raises((502,), 1, 1)
UNREACHABLE = Raises((502, 503), 0, 0)


def refused(status: int) -> Raises:
    """The application's own fault: told once, and nobody else is asked."""
    return Raises((status,), 1, 1)


def recovering(behaviour: str) -> Row:
    """It fails once, and then serves."""
    return Row(f"{behaviour}-once", AGAIN, BY_SECOND)


SUMMARIES = {"sandbox-late", "sandbox-slow-first"}  # the others that serve are echoes
ROWS = (
    *map(
        recovering,
        (
            "sandbox-error-429",
            "sandbox-error-429-exact",
            "sandbox-error-500",
            "sandbox-error-503",
            "sandbox-error-529",
            "sandbox-error-409",
            "sandbox-error-425",
            "sandbox-cut-first",
            "sandbox-malformed-first",
            "sandbox-overloaded-first",
            "sandbox-error-first",
        ),
    ),
    # A connection that was kept open may be reset under a request, which is then sent once more.
    Row("sandbox-reset-first-once", Served((2, 3)), Served((1, 2), 1)),
    Row("sandbox-error-500", DOWN, BY_SECOND),
    Row("sandbox-error-502", DOWN, BY_SECOND),
    Row("sandbox-error-503-unhinted", DOWN, BY_SECOND),
    Row("sandbox-error-429", CALLED_BACK, BY_SECOND),
    Row("sandbox-error-429-long", Raises((503,), 1, 1), BY_SECOND, retry=False),
    Row("sandbox-error-401", GONE, BY_SECOND),
    Row("sandbox-error-402", GONE, BY_SECOND),
    Row("sandbox-no-credit", GONE, BY_SECOND),
    Row("sandbox-error-408", SLOW, BY_SECOND),
    Row("sandbox-error-504", SLOW, BY_SECOND),
    Row("sandbox-silent", SLOW, BY_SECOND),
    Row("sandbox-hung", SLOW, BY_SECOND),
    Row("sandbox-late", Served((1, 1)), Served((1, 1))),
    Row("sandbox-slow-first", Served((1, 1)), Served((1, 1))),
    Row("sandbox-error-404", refused(404), BY_SECOND),
    Row("sandbox-no-page", refused(404), BY_SECOND),
    Row("sandbox-error-413", refused(413), refused(413)),
    Row("sandbox-error-415", refused(400), refused(400)),
    Row("sandbox-error-422", refused(400), refused(400)),
    Row("sandbox-context-overflow", refused(400), refused(400)),
    # Google answers with a refusal, which is an answer like any other.
    Row("sandbox-content-filter", refused(400), refused(400), speaks="chat"),
    Row("sandbox-cut-40", DOWN, BY_SECOND, ("plain",)),
    Row("sandbox-cut-40", Breaks(), Breaks(), ("stream",)),
    Row("sandbox-cut-60", Breaks(), Breaks(), ("stream",)),
    Row("sandbox-reset-40", Breaks(), Breaks(), ("stream",)),
    Row("sandbox-stall", SLOW, BY_SECOND, ("plain",)),
    Row("sandbox-stall", Breaks(), Breaks(), ("stream",)),
    Row("sandbox-malformed", Breaks(), Breaks(), ("stream",)),
    Row("sandbox-error-in-stream", Breaks(), Breaks(), ("stream",)),
    Row("sandbox-unended", Breaks(), Breaks(), ("stream",)),
    Row("sandbox-refused", UNREACHABLE, UNREACHED, address="{closed}", outcome="connect"),
    Row("sandbox-nowhere", UNREACHABLE, UNREACHED, address="http://nowhere.invalid", outcome="dns"),
    # It takes a handshake for a request that it cannot read, and hangs up.
    Row("sandbox-no-tls", UNREACHABLE, UNREACHED, address="{secure}", outcome="connect"),
    Row("sandbox-untrusted", UNREACHABLE, UNREACHED, address="{untrusted}", outcome="tls"),
)


@dataclass(frozen=True)
class Case:
    """One row in one arrangement, asked in one way through one API. `name` is its model's, and
    part of what its upstreams call theirs."""

    name: str
    row: Row
    api: str
    kind: Kind
    arrangement: str

    def __str__(self) -> str:
        return f"{self.row.behaviour}-{self.api}-{self.kind}-{self.arrangement}"

    @property
    def expected(self) -> Result:
        return self.row.alone if self.arrangement == "alone" else self.row.pair

    @property
    def first(self) -> str:
        return f"{self.name}-{self.row.behaviour}"

    @property
    def second(self) -> str:
        return f"{self.name}-sandbox-echo"


def cases() -> Iterator[Case]:
    """Each row through two of the four APIs, so that neighbours in the table share all four."""
    for number, row in enumerate(ROWS):
        apis = list(APIS)[number % 2 :: 2]
        for api, kind, arrangement in itertools.product(apis, row.kinds, ("alone", "pair")):
            name = f"f{number}{api[0]}{kind[0]}{arrangement[0]}"
            yield Case(name, row, api, kind, arrangement)


CASES = list(cases())

_PROVIDER = """
[[providers]]
name = "{name}"
protocol = "{protocol}"
base_url = "{base_url}"
api_key = "sandbox"
connect_seconds = 2
first_byte_seconds = 6
idle_seconds = 5
"""
_MODEL = """
[[models]]
id = "{name}"
upstreams = [{upstreams}]
price = {{ input = "1.00", output = "4.00" }}
"""


def config_of(origin: str, closed: str, untrusted: str) -> str:
    """A provider and a model for each case; what the providers speak goes round."""
    secure = origin.replace("http:", "https:")
    config = LOOPBACK + _PROVIDER.format(name="backup", protocol="openai", base_url=f"{origin}/v1")
    for number, case in enumerate(CASES):
        speakers = [each for each in SPEAKERS if case.row.speaks in ("", each.name)]
        speaker = speakers[number // 3 % len(speakers)]
        address = case.row.address.format(
            origin=origin, closed=closed, secure=secure, untrusted=untrusted
        )
        config += _PROVIDER.format(
            name=case.name, protocol=speaker.protocol, base_url=address + speaker.prefix
        )
        upstreams = [f"{case.name}/{case.first}"]
        if case.arrangement == "pair":
            upstreams.append(f"backup/{case.second}")
        config += _MODEL.format(
            name=case.name, upstreams=", ".join(f'"{each}"' for each in upstreams)
        )
    return config


# -- playing them, all at once --------------------------------------------------------------------


@dataclass(frozen=True)
class Played:
    """What came of a case: `text` of the answer or the error, how often each was asked, and what
    the gateway calls what the first one did."""

    text: str
    error: Exception | None
    first: int
    second: int
    outcomes: frozenset[str]


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Played]]:
    """Every case by its name. The books are sound at the end, and nothing is held."""
    with sandbox_process() as origin, closed_port() as closed, untrusted_server() as untrusted:
        config = config_of(origin, closed, untrusted)
        with serving(tmp_path_factory.mktemp("failures"), config) as gateway:
            key = gateway.new_key("sdk", "1000.00")
            results = play(sdks_of(gateway, key), CASES)
            calls = Sandbox(origin).calls()
            outcomes = outcomes_of(gateway)
            yield {
                case.name: Played(
                    text,
                    error,
                    calls.get(case.first, 0),
                    calls.get(case.second, 0),
                    outcomes.get(case.name, frozenset()),
                )
                for case, (text, error) in zip(CASES, results, strict=True)
            }
        gateway.run("ledger", "verify")
        assert gateway.record("account", "show", "sdk")["reserved_usd"] == "0"


def play(sdks: Sdks, chosen: Sequence[Case]) -> list[tuple[str, Exception | None]]:
    """Ask everything; the slowest cases take many times as long as most, so they come mixed."""

    def tried(case: Case) -> tuple[str, Exception | None]:
        try:
            ask = APIS[case.api]
            return ask(sdks, case.name, stream=case.kind == "stream", retry=case.row.retry), None
        except (openai.APIError, anthropic.APIError, gemini_errors.APIError) as error:
            return "", error

    def one(case: Case) -> tuple[str, Exception | None]:
        """What the gateway had no time for, before it asked anybody, is asked again; packages
        that retry do so themselves."""
        text, error = tried(case)
        for _ in range(BUSY_TRIES):
            if (case.row.retry and case.api != "gemini") or not BUSY.search(str(error)):
                break
            threading.Event().wait(BUSY_SECONDS)
            text, error = tried(case)
        return text, error

    mixed = list(chosen)
    random.Random(1).shuffle(mixed)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = dict(zip((case.name for case in mixed), pool.map(one, mixed), strict=True))
    sdks.close()
    return [results[case.name] for case in chosen]


def outcomes_of(gateway: GatewayProcess) -> Mapping[str, frozenset[str]]:
    """What attempts at each provider came to."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, count in gateway.metrics().items():
        if count and (labels := ATTEMPTS.fullmatch(name)):
            found[labels["provider"]].add(labels["outcome"])
    return {provider: frozenset(each) for provider, each in found.items()}


@contextmanager
def closed_port() -> Iterator[str]:
    """An address where nobody listens, for as long as the block lasts."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}"


@contextmanager
def untrusted_server() -> Iterator[str]:
    """An address that speaks TLS, with a certificate by an authority that nobody knows."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with socket.create_server(("127.0.0.1", 0), backlog=AT_ONCE) as listening:
        thread = threading.Thread(target=shake_hands, args=(listening, context))
        thread.start()
        try:
            yield f"https://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)  # which ends an accept that waits
            thread.join()


def shake_hands(listening: socket.socket, context: ssl.SSLContext) -> None:
    """Offer the certificate to everybody who comes, until nobody can any more."""
    while True:
        try:
            connected, _ = listening.accept()
        except OSError:
            return
        connected.settimeout(HANDSHAKE_SECONDS)
        try:
            context.wrap_socket(connected, server_side=True).close()
        except OSError:  # the client does not trust us
            connected.close()


# -- what came of it ------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_the_application_gets(case: Case, played: Mapping[str, Played]) -> None:
    got = played[case.name]
    match case.expected:
        case Served((least, most), second):
            assert got.error is None
            assert got.text.endswith(TEXT)  # of a summary, or
            assert got.text == TEXT or case.row.behaviour in SUMMARIES
            assert least <= got.first <= most
            assert got.second == second
        case Raises() as raises:
            assert status_of(got.error) in raises.statuses
            assert raises.least <= got.first <= raises.most
            assert got.second == 0
        case Breaks():
            assert got.error is not None
            assert status_of(got.error) in (None, 200, 502, 504)
            assert (got.first, got.second) == (1, 0)


@pytest.mark.parametrize("case", [each for each in CASES if each.row.outcome], ids=str)
def test_what_the_gateway_calls_it(case: Case, played: Mapping[str, Played]) -> None:
    assert played[case.name].outcomes == {case.row.outcome}


def status_of(error: Exception | None) -> int | None:
    """The HTTP status that an SDK tells of; None where its error has none."""
    assert error is not None, "an answer, where there can be none"
    found = getattr(error, "status_code", None) or getattr(error, "code", None)
    return found if isinstance(found, int) else None


def test_every_failure_is_played_through_every_api() -> None:
    """Over the whole table; and each kind of result through each of them."""
    seen = {(type(case.expected), case.api) for case in CASES}
    assert seen == set(itertools.product((Served, Raises, Breaks), APIS))
