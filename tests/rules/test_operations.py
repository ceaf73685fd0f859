"""What an operator relies on: probes, metrics, logs, reload, drain, restart, and plain refusals.

Real gateways, told what to do by signals and configuration files, called by the official SDK.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from functools import partial
from pathlib import Path

import openai
import psycopg
import pytest
import trio
from openai import OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam
from psycopg import sql

from ledger.directory import Directory
from proxy.listener import bind
from tests.fakes.callers import Outcome, call
from tests.fakes.process import FAREBOX, LOOPBACK, GatewayProcess, serving, wait_until_effective
from tests.fakes.waiting import eventually, until

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hello, gateway!"}]
DATABASE_BACK_SECONDS = 60
SECOND_START_SECONDS = 5.0 * 3  # the promise is five; other tests may share the machine


# -- helpers --------------------------------------------------------------------------------------


def client_of(gateway: GatewayProcess, key: str) -> OpenAI:
    return OpenAI(base_url=f"{gateway.base_url}/v1", api_key=key, max_retries=0)


def ask(gateway: GatewayProcess, key: str, model: str = "sandbox") -> ChatCompletion:
    with client_of(gateway, key) as client:
        return client.chat.completions.create(model=model, messages=HELLO)


def fetch(url: str) -> tuple[int, bytes]:
    """Status and body of a GET, whatever the status."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - loopback
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def answers(gateway: GatewayProcess) -> bool:
    """Whether the public port takes connections."""
    host, _, port = gateway.base_url.removeprefix("http://").partition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


@contextmanager
def sandbox_server() -> Iterator[str]:
    """A sandbox provider of the test's own; its OpenAI base URL."""
    with bind("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        child = subprocess.Popen(
            [sys.executable, "-m", "farebox.sandbox", str(listening.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=[listening.fileno()],
        )
    with child:
        try:
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            child.kill()


def relay_to(provider: str, **prices: str) -> str:
    """A configuration that relays to `provider` the models of `prices`, at a price per token."""
    models = "".join(
        f'[[models]]\nid = "{model}"\nupstreams = ["outside/{model}"]\nmax_output_tokens = 1000\n'
        f'[models.price]\ninput = "{price}"\noutput = "{price}"\n'
        for model, price in prices.items()
    )
    return (
        f'{LOOPBACK}\n[billing]\nmargin = "0"\n'
        f'[[providers]]\nname = "outside"\nbase_url = "{provider}"\napi_key = "sandbox"\n{models}'
    )


def refusal(directory: Path, config: str) -> list[str]:
    """The lines on standard error with which `farebox serve` refuses to start."""
    (directory / "farebox.toml").write_text(config)
    done = subprocess.run(
        [*FAREBOX, "serve", "--config", "farebox.toml"],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    return done.stderr.splitlines()


def requests_logged(gateway: GatewayProcess) -> list[dict[str, object]]:
    return [json.loads(line) for line in gateway.output if line.startswith("{")]


# -- probes, metrics, logs ------------------------------------------------------------------------


def test_probes_metrics_and_log_tell_what_happened_and_to_whom_never_the_key(
    tmp_path: Path,
) -> None:
    with serving(tmp_path) as gateway:
        assert fetch(f"{gateway.admin_url}/healthz") == (200, b"ok\n")
        ready = (200, b"ready\n")
        eventually(lambda: fetch(f"{gateway.admin_url}/readyz") == ready, "it is ready")
        assert fetch(f"{gateway.admin_url}/elsewhere")[0] == 404
        assert fetch(f"{gateway.base_url}/metrics")[0] == 404  # private listener only

        key = gateway.new_key("acme-widgets")
        for _ in range(3):
            ask(gateway, key)
        with client_of(gateway, key) as client:
            list(client.chat.completions.create(model="sandbox", messages=HELLO, stream=True))
            with pytest.raises(openai.NotFoundError):
                ask(gateway, key, "no-such-model")
            with pytest.raises(openai.InternalServerError):
                ask(gateway, key, "sandbox-error-500")
        with pytest.raises(openai.AuthenticationError):
            ask(gateway, "sk_farebox_unknown_to_everyone")

        metrics = gateway.metrics()
        assert metrics[requests_of("sandbox", "sandbox", 200)] == 4
        assert metrics['farebox_upstream_attempts_total{outcome="ok",provider="sandbox"}'] == 4
        assert metrics["farebox_open_streams"] == 0
        assert metrics["farebox_held_bytes"] == 0 < metrics["farebox_held_bytes_max"]
        tokens = 'farebox_tokens_total{kind="output",model="sandbox",provider="sandbox"}'
        assert metrics[tokens] > 0
        assert any(name.startswith("farebox_build_info{version=") for name in metrics)
        for name in metrics:
            assert key not in name
            assert "acme" not in name
            assert "no-such-model" not in name  # free text of a caller

        def charged_in_the_books() -> bool:
            shown = gateway.record("account", "show", "acme-widgets")
            return abs(float(str(shown["charged_usd"])) - charged(metrics)) < 1e-9

        assert charged(metrics) > 0
        eventually(charged_in_the_books, "the books charge what the metrics say")
        key_id = gateway.record("key", "list", "acme-widgets")["id"]

    lines = [line for line in requests_logged(gateway) if line.get("endpoint") != "models.list"]
    served = [line for line in lines if line["status"] == 200 and line.get("key_id") == key_id]
    assert len([line for line in served if line.get("model") == "sandbox"]) == 4
    assert {line["status"] for line in lines} >= {200, 401, 404, 502}
    assert all(line["request_id"] and line["event"] == "request" for line in lines)
    assert not [line for line in gateway.output if key in line or "unknown_to_everyone" in line]


def requests_of(model: str, provider: str, status: int) -> str:
    return (
        f'farebox_requests_total{{model="{model}",provider="{provider}",'
        f'status="{status}",surface="openai"}}'
    )


def charged(metrics: dict[str, float]) -> float:
    return sum(
        value for name, value in metrics.items() if name.startswith("farebox_charged_usd_total{")
    )


def test_402_means_that_nothing_reached_the_provider(tmp_path: Path) -> None:
    with (
        sandbox_server() as provider,
        serving(tmp_path, relay_to(provider, sandbox="1.00")) as gateway,
    ):
        calls = provider.removesuffix("/v1") + "/sandbox/calls"
        poor = gateway.new_key("poor", "0.0001")
        with pytest.raises(openai.APIStatusError) as refused:
            ask(gateway, poor)
        assert refused.value.status_code == 402
        assert refused.value.code == "insufficient_credit"
        assert refused.value.type == "insufficient_prepaid_balance"
        assert refused.value.response.headers["x-should-retry"] == "false"
        body = json.loads(refused.value.response.content, parse_float=Decimal)["error"]
        assert body["balance_usd"] == Decimal("0.0001")
        assert body["required_usd"] > body["balance_usd"]
        assert json.loads(fetch(calls)[1]) == {"calls": 0, "models": {}}
        assert gateway.metrics()["farebox_insufficient_balance_total"] == 1

        ask(gateway, gateway.new_key("rich"))
        assert json.loads(fetch(calls)[1])["calls"] == 1


# -- reload ---------------------------------------------------------------------------------------


def test_sighup_changes_models_prices_and_limits_for_new_requests_only(tmp_path: Path) -> None:
    models = {"sandbox": "1.00", "sandbox-slow": "1.00"}
    with (
        sandbox_server() as provider,
        serving(tmp_path, relay_to(provider, **models)) as gateway,
        client_of(gateway, gateway.new_key("acme")) as client,
    ):

        def listed() -> set[str]:
            return {model.id for model in client.models.list()}

        with client.chat.completions.create(
            model="sandbox-slow", messages=HELLO, stream=True
        ) as stream:
            next(stream)
            changed = {"sandbox-slow": "3.00", "sandbox-long": "1.00"}
            later = relay_to(provider, **changed).replace("[server]", "[server]\nworkers = 3", 1)
            gateway.config.write_text(later)
            gateway.signal(signal.SIGHUP)
            eventually(lambda: "sandbox-long" in listed(), "the new model is listed")
            assert "sandbox" not in listed()
            eventually(lambda: "Reloaded: " in "".join(gateway.output), "the reload is told")
            wait = "These keep their old values until a restart: server.workers."
            eventually(lambda: wait in "".join(gateway.output), "what was not reloaded is told")
            *_, last = stream
            assert last.choices[0].finish_reason == "stop"

        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="sandbox", messages=HELLO)
        client.chat.completions.create(model="sandbox-slow", messages=HELLO)

        def is_refused(config: str, sentence: str) -> None:
            gateway.config.write_text(config)
            gateway.signal(signal.SIGHUP)
            eventually(lambda: sentence in "".join(gateway.output), sentence)

        is_refused("[server]\nlistem = 1\n", 'server.listem: unknown key; did you mean "listen"?')
        is_refused(LOOPBACK, "the sandbox needs a restart")
        client.chat.completions.create(model="sandbox-long", messages=HELLO)

        def limited() -> bool:
            try:
                client.chat.completions.create(model="sandbox-long", messages=HELLO)
            except openai.RateLimitError:
                return True
            return False

        one = '[limits]\ndefault_tier = "one"\n[tiers.one]\nrpm = 1\n'
        gateway.config.write_text(one + relay_to(provider, **changed))
        gateway.signal(signal.SIGHUP)
        eventually(limited, "the new tier limits a key that was known")
        assert gateway.metrics()['farebox_rate_limited_total{limit="rpm"}'] >= 1

    per_token = [
        Decimal(str(record["charge_usd"])) / (tokens(record, "input") + tokens(record, "output"))
        for record in gateway.records("usage", "export", "acme", "--format", "jsonl")
        if record["billing_status"] == "charged"
    ]
    million = [price * 1_000_000 for price in per_token]
    assert million[:3] == [1, 3, 1]  # the open stream, the same model after it, the new model


def tokens(record: dict[str, object], kind: str) -> int:
    return int(str(record[f"{kind}_tokens"]))


# -- stopping and starting ------------------------------------------------------------------------


def test_a_key_that_is_revoked_just_before_a_reload_stays_revoked(tmp_path: Path) -> None:
    with serving(tmp_path) as gateway:
        gateway.record("account", "create", "acme")
        made = [gateway.record("key", "create", "acme/web") for _ in range(8)]
        assert all(gateway.knows(str(each["key"])) for each in made)
        with Directory(gateway.conninfo) as directory:
            for count, each in enumerate(made, start=1):
                directory.revoke_key(int(str(each["id"])))
                gateway.signal(signal.SIGHUP)
                told = partial(have_reloaded, gateway, count)
                eventually(told, "the reload is told")
        wait_until_effective()
        assert not any(gateway.knows(str(each["key"])) for each in made)


def test_a_reload_while_the_database_only_reads_changes_nothing(tmp_path: Path) -> None:
    """A managed database whose disk is full is set so, and so is one that is demoted."""
    with (
        sandbox_server() as provider,
        serving(tmp_path, relay_to(provider, sandbox="1.00")) as gateway,
        client_of(gateway, gateway.new_key("acme")) as client,
    ):

        def listed() -> set[str]:
            return {model.id for model in client.models.list()}

        set_read_only(gateway, read_only=True)
        gateway.config.write_text(relay_to(provider, **{"sandbox-long": "1.00"}))
        gateway.signal(signal.SIGHUP)
        kept = "Not reloaded, the old configuration stays: The database does not answer"
        eventually(lambda: kept in "".join(gateway.output), "that nothing was reloaded")
        assert "sandbox" in listed()
        set_read_only(gateway, read_only=False)
        assert gateway.knows(gateway.new_key("later"))  # it has the database again
        gateway.signal(signal.SIGHUP)
        eventually(lambda: "sandbox-long" in listed(), "the next reload")


def set_read_only(gateway: GatewayProcess, *, read_only: bool) -> None:
    with psycopg.connect(gateway.conninfo, autocommit=True) as connection:
        connection.execute("SET default_transaction_read_only = off")
        name, state = sql.Identifier(connection.info.dbname), "on" if read_only else "off"
        connection.execute(
            sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = {}").format(name, state)
        )
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


def have_reloaded(gateway: GatewayProcess, count: int) -> bool:
    return "".join(gateway.output).count("Reloaded: ") == count


def test_sigterm_finishes_what_runs_and_gives_all_credit_back(tmp_path: Path) -> None:
    gateway = GatewayProcess(tmp_path)
    try:
        gateway.start()
        key = gateway.new_key("acme")
        with (
            client_of(gateway, key) as client,
            client.chat.completions.create(
                model="sandbox-slow", messages=HELLO, stream=True
            ) as stream,
        ):
            next(stream)
            gateway.signal(signal.SIGTERM)
            eventually(lambda: not answers(gateway), "new connections are refused")
            words = [chunk.choices[0].delta.content or "" for chunk in stream]
        assert "".join(words).split()[-1] == "20"
        assert gateway.stop() == 0, gateway.tail()

        account = gateway.record("account", "show", "acme")
        assert account["reserved_usd"] == "0"
        assert Decimal(str(account["charged_usd"])) > 0
        holders = gateway.records("ledger", "holders", "--json")
        assert {holder["outstanding_usd"] for holder in holders} == {"0"}
        gateway.run("ledger", "verify")

        began = time.monotonic()
        gateway.start()
        assert time.monotonic() - began < SECOND_START_SECONDS
        assert gateway.output.count(f"  {gateway.key}\n") == 1  # the demo key is shown once
        ask(gateway, key)
        assert gateway.stop() == 0, gateway.tail()
    finally:
        gateway.kill()


def test_a_second_sigterm_cuts_and_charges_what_was_delivered(tmp_path: Path) -> None:
    patient = LOOPBACK.replace("drain_seconds = 5", "drain_seconds = 600")
    gateway = GatewayProcess(tmp_path, patient)
    try:
        gateway.start()
        with (
            client_of(gateway, gateway.new_key("acme")) as client,
            client.chat.completions.create(
                model="sandbox-stall", messages=HELLO, stream=True
            ) as stream,
        ):
            next(stream)
            gateway.signal(signal.SIGTERM)
            eventually(lambda: not answers(gateway), "new connections are refused")
            draining = "Draining: what runs may finish; a second signal cuts it."
            eventually(lambda: draining in gateway.tail(), "it says what it does")
            status, why = fetch(f"{gateway.admin_url}/readyz")
            assert (status, why) == (503, b"draining\n")
            assert fetch(f"{gateway.admin_url}/healthz")[0] == 200
            assert gateway.stop() == 0, gateway.tail()
            with pytest.raises((openai.APIError, OSError)):
                list(stream)
        account = gateway.record("account", "show", "acme")
        assert account["reserved_usd"] == "0"
        assert Decimal(str(account["charged_usd"])) > 0
    finally:
        gateway.kill()


# -- refusing to start ----------------------------------------------------------------------------


def test_a_bad_configuration_refuses_to_start_with_a_sentence_each(tmp_path: Path) -> None:
    lines = refusal(
        tmp_path,
        '[server]\nmax_bodies = 1\n[billing]\nmargin = "sk-secret"\n'
        '[[providers]]\npreset = "opnai"\napi_key = "sk-secret"\n',
    )
    assert len(lines) == 3, lines
    assert lines[0].startswith("server.max_bodies: unknown key")
    assert "sk-secret" not in "".join(lines)
    assert not (tmp_path / ".farebox").exists()


@pytest.mark.parametrize("key", ["listen", "admin_listen"])
def test_a_port_in_use_refuses_to_start_with_a_sentence(tmp_path: Path, key: str) -> None:
    with bind("127.0.0.1", 0) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = LOOPBACK.replace(f'{key} = "127.0.0.1:0"', f'{key} = "{address}"', 1)
        (line,) = refusal(tmp_path, config)
    assert line.startswith(f"Cannot listen on {address}: Address already in use.")


@pytest.mark.parametrize("url", [True, False], ids=["external", "embedded"])
def test_a_data_directory_that_cannot_be_used_is_a_sentence(
    tmp_path: Path, database: str, url: bool
) -> None:
    (tmp_path / "taken").write_text("a file")
    secret = f'secret = "{"ab" * 32}"'
    config = LOOPBACK.replace("[server]", f"[server]\n{secret}")
    config += '[database]\ndata_dir = "taken"\n'
    if url:
        config += f"url = {json.dumps(database)}\n"
    (line,) = refusal(tmp_path, config)
    assert str(tmp_path / "taken") in line
    assert "[database] data_dir" in line


def test_a_second_gateway_on_the_same_data_refuses_to_start(tmp_path: Path) -> None:
    with serving(tmp_path) as gateway:
        (line,) = refusal(tmp_path, LOOPBACK)
        assert "journal" in line.lower(), line
        ask(gateway, gateway.key)


# -- the embedded database ------------------------------------------------------------------------


async def test_a_killed_postgres_is_revived_while_calls_go_on(tmp_path: Path) -> None:
    pid_file = tmp_path / ".farebox" / "postgres" / "postmaster.pid"

    def postmaster() -> int:
        lines = pid_file.read_text().splitlines() if pid_file.exists() else []
        return int(lines[0]) if len(lines) > 7 and lines[7].strip() == "ready" else 0

    with serving(tmp_path) as gateway:
        key = gateway.new_key("acme")
        outcomes: list[Outcome] = []
        done = trio.Event()

        async def caller() -> None:
            while not done.is_set():
                outcomes.append(await call(gateway.base_url, key, "sandbox"))
                await trio.sleep(0.02)

        def ready() -> bool:
            return fetch(f"{gateway.admin_url}/readyz") == (200, b"ready\n")

        wait = partial(until, seconds=DATABASE_BACK_SECONDS)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(caller)
            nursery.start_soon(caller)
            await wait(lambda: len(outcomes) > 40, "so many calls that spending is known")
            killed = postmaster()
            os.kill(killed, signal.SIGKILL)
            await wait(lambda: postmaster() not in (0, killed), "another postmaster is ready")
            after = len(outcomes)
            await wait(lambda: len(outcomes) > after + 10, "calls are served again")
            await wait(ready, "the gateway is ready again")
            done.set()
        assert {outcome.status for outcome in outcomes} == {200}

    records = gateway.records("usage", "export", "acme", "--format", "jsonl")
    assert {record["request_id"] for record in records} == {o.request_id for o in outcomes}
    gateway.run("ledger", "verify")
