"""Names that users, their SDKs, dashboards and scripts rely on, as tables.

Whoever changes a line here breaks somebody's script: the documentation and the changelog have to
say so. No gateway is started, so `make check` stays quick.
"""

from __future__ import annotations

import ast
import dataclasses
import datetime as dt
import importlib
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from adapters import errors
from adapters.catalogue import Provider, Upstream
from adapters.errors import APIError
from adapters.openai.refusal import OpenAIRefusals
from farebox.cli import cli
from farebox.commands.accounts import record_of
from farebox.commands.keys import key_record, project_record
from farebox.config import Config, load
from farebox.decode import map_strings
from ledger.accounts import Account, AccountStatus, Budget, Key, Project, Statement
from ledger.money import parse_usd
from ledger.server import LedgerStatistics
from ledger.usage import UsageRecord
from proxy.health import Health
from proxy.metrics import Metrics
from proxy.record import CLIENT_CLOSED
from tests.fakes import example

ROOT = Path(__file__).resolve().parents[1]
NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)


# -- farebox.toml ---------------------------------------------------------------------------------

SETTINGS = """
[server]
listen = "127.0.0.1:8080"
admin_listen = "127.0.0.1:9464"
public_url = "http://127.0.0.1:8080"
workers = 1
drain_seconds = 600
max_request_seconds = 900
max_body_bytes = 67108864
max_head_bytes = 65536
max_connections = 10000
head_seconds = 10
body_seconds = 30
keep_alive_seconds = 75
secret = "file:.farebox/secret"
brand = "farebox"
[database]
url = "env:DATABASE_URL"
data_dir = ".farebox"
[limits]
default_tier = ""
valkey_url = "env:VALKEY_URL"
[billing]
margin = "0.10"
allow_unpriced = false
reserve = "full"
default_max_output_tokens = 16384
[tiers.free]
rpm = 20
tpm = 200000
concurrent = 2
[tiers.pro]
rpm = 200
tpm = 2000000
concurrent = 10
[tiers.enterprise]
[[providers]]
preset = "openai"
name = "openai"
protocol = "openai"
base_url = "https://api.openai.com/v1"
api_key = "env:OPENAI_API_KEY"
auth = "bearer"
headers = {}
query = {}
connect_seconds = 5
first_byte_seconds = 300
idle_seconds = 120
max_connections = 512
[[models]]
id = "gpt-4o"
owned_by = "openai"
kind = "chat"
context_window = 128000
max_output_tokens = 16384
upstreams = ["openai/gpt-4o", "backup/gpt-4o-2024-11-20"]
hedge_after_percentile = 0
default_max_output_tokens = 16384
rpm = 10000
capabilities = ["tools", "vision", "json_schema"]
[models.price]
input = "2.50"
cached_input = "1.25"
cache_write = "2.50"
output = "10.00"
[[models.price.above]]
input_tokens = 272000
input = "5.00"
output = "15.00"
[models.price.service_tier]
flex = "0.5"
priority = "2.0"
[models.upstream_price."backup/gpt-4o-2024-11-20"]
input = "2.75"
output = "11.00"
[routing]
enabled = true
retention_days = 30
redaction = "standard"
default_reference = "gpt-4o"
[console]
jwt_secret = "env:SUPABASE_JWT_SECRET"
jwks_url = "https://PROJECT.supabase.co/auth/v1/.well-known/jwks.json"
issuer = "https://PROJECT.supabase.co/auth/v1"
audience = "authenticated"
[stripe]
api_key = "env:STRIPE_API_KEY"
webhook_secret = "env:STRIPE_WEBHOOK_SECRET"
api_base = "https://api.stripe.com"
"""


def values(table: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Every value of a TOML document by its path; an empty table is a value."""
    if isinstance(table, dict) and table:
        for key, value in table.items():
            yield from values(value, f"{path}.{key}")
    elif isinstance(table, list) and table and isinstance(table[0], dict):
        for index, value in enumerate(table):
            yield from values(value, f"{path}[{index}]")
    else:
        yield path, table


_ADDRESSES = {"DATABASE_URL": "postgresql://x", "VALKEY_URL": "valkey://x"}


def variables(document: object) -> dict[str, str]:
    """An environment with every variable that a document names."""
    found: dict[str, str] = {}

    def note(text: str, _: str) -> str:
        if text.startswith("env:"):
            name = text.removeprefix("env:")
            found[name] = _ADDRESSES.get(name, "x" * 32)
        return text

    map_strings(document, "", note, spare=frozenset())
    return found


def whole_example(directory: Path) -> Config:
    """The example file with all that is in it."""
    return load(example.file(directory), variables(tomllib.loads(example.text())))


def test_the_example_file_shows_every_promised_setting() -> None:
    shown = dict(values(tomllib.loads(example.text())))
    missing = {path for path, _ in values(tomllib.loads(SETTINGS))} - shown.keys()
    assert not missing
    differing = {
        path: (value, shown[path])
        for path, value in values(tomllib.loads(SETTINGS))
        if shown[path] != value
    }
    assert not differing


def test_the_example_file_is_fit_to_serve(tmp_path: Path) -> None:
    config = whole_example(tmp_path)
    assert [model.id for model in config.models] == ["gpt-4o"]
    assert all("not in this version yet" in warning for warning in config.warnings)


def test_what_the_example_file_leaves_at_its_default_is_the_default(tmp_path: Path) -> None:
    """A copied example changes nothing that was not meant: the shown values are the defaults."""
    (tmp_path / "farebox.toml").write_text("")
    default = load(tmp_path / "farebox.toml", {})
    copied = load(Path(shutil.copy(example.EXAMPLE, tmp_path / "farebox.toml")), {})
    assert copied == default
    shown = whole_example(tmp_path)
    assert shown.billing == default.billing
    for name in default.server.__struct_fields__:
        if name not in ("public_url", "secret"):  # made from others
            assert getattr(shown.server, name) == getattr(default.server, name), name


# -- errors ---------------------------------------------------------------------------------------

ERRORS: list[tuple[int, str]] = [
    (400, "invalid_request"),
    (401, "invalid_api_key"),
    (402, "insufficient_prepaid_balance"),
    (403, "permission_denied"),
    (403, "account_suspended"),
    (404, "model_not_available"),
    (404, "not_found"),
    (405, "not_found"),
    (408, "invalid_request"),
    (409, "idempotency_key_in_use"),
    (409, "idempotent_answer_lost"),
    (413, "request_too_large"),
    (415, "invalid_request"),
    (422, "idempotency_key_reused"),
    (429, "rate_limit_exceeded"),
    (431, "invalid_request"),
    (499, "client_disconnected"),
    (500, "internal_error"),
    (502, "upstream_unavailable"),
    (502, "console_failed"),
    (503, "upstream_unavailable"),
    (503, "console_unavailable"),
    (503, "ledger_unavailable"),
    (503, "overloaded"),
    (504, "upstream_timeout"),
]


def error_classes(base: type[APIError] = APIError) -> Iterator[type[APIError]]:
    yield base
    for derived in base.__subclasses__():
        yield from error_classes(derived)


def test_errors_have_the_promised_statuses_and_codes() -> None:
    importlib.import_module("proxy.control")  # has two of its own
    known = {(error.status, error.code) for error in error_classes()}
    assert known == set(ERRORS)


def console_codes() -> Iterator[tuple[int, str]]:
    """What the console's own code refuses with, wherever it says so in plain."""
    for path in (ROOT / "console").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                first = [arg.value for arg in node.args[:2] if isinstance(arg, ast.Constant)]
                match node.func.id, first:
                    case "Refused", [int(status), str(code)]:
                        yield status, code


def test_every_code_of_the_console_is_documented() -> None:
    _, _, table = (ROOT / "docs" / "console.md").read_text().partition("## Errors")
    documented = {
        (int(row[1]), code)
        for row in re.finditer(r"^\| (\d+) \| (.+?) \|", table, re.MULTILINE)
        for code in re.findall(r"`(\w+)`", row[2])
    }
    used = set(console_codes())
    assert (404, "not_found") in used
    assert used <= documented


def test_a_client_that_left_is_logged_as_499() -> None:
    assert CLIENT_CLOSED == 499


def test_the_body_of_a_402() -> None:
    refusals = OpenAIRefusals()
    error = errors.InsufficientBalance(
        "Not enough credit.",
        balance_usd="0.000000001",
        reserved_usd="0",
        required_usd="12.5",
        affordable_output_tokens=7,
    )
    assert refusals.error_body(error, "id") == (
        b'{"error":{"message":"Not enough credit.","type":"insufficient_prepaid_balance",'
        b'"param":null,"code":"insufficient_credit","balance_usd":0.000000001,"reserved_usd":0,'
        b'"required_usd":12.5,"affordable_output_tokens":7}}'
    )
    assert ("x-should-retry", "false") in refusals.error_headers(error)


def test_context_overflow_has_the_code_that_clients_match_on() -> None:
    body = OpenAIRefusals().error_body(errors.ContextLengthExceeded("Too long."), "id")
    assert b'"code":"context_length_exceeded"' in body
    assert b'"type":"farebox_error"' in body


@pytest.mark.parametrize("error", [errors.RateLimited, errors.Overloaded])
def test_429_and_503_say_when_to_retry(error: type[APIError]) -> None:
    headers = dict(OpenAIRefusals().error_headers(error("Later.")))
    assert int(headers["retry-after"]) >= 1


# -- metrics --------------------------------------------------------------------------------------

METRICS: dict[str, tuple[str, ...]] = {
    "farebox_requests_total": ("surface", "model", "provider", "status"),
    "farebox_request_duration_seconds": ("surface", "model"),
    "farebox_overhead_seconds": (),
    "farebox_time_to_first_byte_seconds": ("surface", "model"),
    "farebox_open_streams": (),
    "farebox_tokens_total": ("model", "provider", "kind"),
    "farebox_charged_usd_total": ("model", "provider"),
    "farebox_provider_cost_usd_total": ("model", "provider"),
    "farebox_settled_reserved_usd_total": ("model", "provider"),
    "farebox_overrun_usd_total": ("model", "provider"),
    "farebox_unbilled_provider_cost_usd_total": ("provider",),
    "farebox_settlements_total": ("model", "provider", "status"),
    "farebox_streams_short_of_credit_total": ("model",),
    "farebox_upstream_attempts_total": ("provider", "outcome"),
    "farebox_circuit_state": ("provider",),
    "farebox_rate_limited_total": ("limit",),
    "farebox_insufficient_balance_total": (),
    "farebox_ledger_flush_seconds": (),
    "farebox_ledger_pending_events": (),
    "farebox_ledger_leased_usd": (),
    "farebox_ledger_reserved_usd": (),
    "farebox_ledger_open_reservations": (),
    "farebox_ledger_oldest_reservation_seconds": (),
    "farebox_ledger_oldest_event_seconds": (),
    "farebox_ledger_disconnected": (),
    "farebox_ledger_halted": (),
    "farebox_build_info": ("version",),
}


def test_metrics_have_the_promised_names_and_labels() -> None:
    metrics = Metrics()
    figures = {field.name for field in dataclasses.fields(LedgerStatistics)} - {"halted"}
    zero = LedgerStatistics(**dict.fromkeys(figures, False), halted=None)
    metrics.watch_ledger(lambda: zero)
    metrics.exchanges["openai", "m", "p", 200].requests.inc()
    metrics.attempt("p", "ok").inc()
    metrics.short_of_credit("m").inc()
    metrics.limited("rpm").inc()
    health = Health()
    health.serve([Upstream(Provider("p", "openai", "http://p"), "m", None)])
    metrics.watch_upstreams(lambda: health.states(0))
    labels: dict[str, set[str]] = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            if sample.name.endswith("_created"):
                continue
            seen = labels.setdefault(sample.name, set())
            seen |= sample.labels.keys() - {"le"}
            labels.setdefault(family.name, seen)
    assert {name: labels.get(name) for name in METRICS} == {
        name: set(expected) for name, expected in METRICS.items()
    }


# -- commands -------------------------------------------------------------------------------------

COMMANDS: dict[str, tuple[str, ...]] = {
    "serve": ("--config",),
    "check": ("--config",),
    "account create": ("NAME", "--tier", "--credit"),
    "account list": (),
    "account show": ("NAME",),
    "account set": ("NAME", "--tier"),
    "credit": ("NAME", "AMOUNT", "--reason"),
    "project create": ("ACCOUNT/PROJECT", "--budget", "--budget-period"),
    "project delete": ("ACCOUNT/PROJECT",),
    "key create": (
        "ACCOUNT/PROJECT",
        "--name",
        "--budget",
        "--budget-period",
        "--expires",
        "--models",
    ),
    "key list": (),
    "key revoke": ("ID",),
    "ledger verify": (),
    "ledger holders": (),
    "ledger declare-dead": ("NODE",),
    "ledger journal verify": (),
    "usage export": ("ACCOUNT", "--since", "--format"),
}
PRINT_NO_RECORD = {"serve"}


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_take_the_promised_options(words: str) -> None:
    command: click.Command = cli
    for word in words.split():
        assert isinstance(command, click.Group)
        command = command.commands[word]
    context = click.Context(command)
    known = {name for parameter in command.params for name in parameter.opts} | {
        parameter.make_metavar(context)
        for parameter in command.params
        if isinstance(parameter, click.Argument)
    }
    everywhere = {"--config"} if words in PRINT_NO_RECORD else {"--config", "--json"}
    assert {*COMMANDS[words], *everywhere} <= known


def test_an_account_as_json(tmp_path: Path) -> None:
    account = Account(1, "acme", "", AccountStatus.OPEN, NOW)
    statement = Statement(account, parse_usd("25.00"), parse_usd("0.000000001"), parse_usd("0.50"))
    config = whole_example(tmp_path)
    record = record_of(statement, config)
    promised = ("name", "tier", "balance_usd", "reserved_usd", "charged_usd", "credited_usd")
    assert {name: record[name] for name in promised} == {
        "name": "acme",
        "tier": "",
        "balance_usd": "24.999999999",  # what is reserved is not taken off
        "reserved_usd": "0.5",
        "charged_usd": "0.000000001",
        "credited_usd": "25",
    }


def test_keys_and_projects_as_json() -> None:
    key = Key(7, "acme", "chat", "ci", Budget(parse_usd("10.00"), "month"), (), NOW, None, None)
    record = key_record(key)
    assert (record["id"], record["project"], record["name"]) == (7, "acme/chat", "ci")
    assert (record["budget_usd"], record["budget_period"]) == ("10", "month")
    assert project_record(Project(3, "acme", "chat", None, NOW))["project"] == "acme/chat"


def test_usage_records_have_the_promised_fields() -> None:
    assert UsageRecord.__struct_fields__ == (
        "time",
        "request_id",
        "account",
        "project",
        "key_id",
        "surface",
        "endpoint",
        "model",
        "upstream",
        "input_tokens",
        "cached_input_tokens",
        "cache_write_tokens",
        "output_tokens",
        "reasoning_tokens",
        "status",
        "billing_status",
        "cost_usd",
        "charge_usd",
        "reserved_usd",
        "ttfb_ms",
        "duration_ms",
    )
