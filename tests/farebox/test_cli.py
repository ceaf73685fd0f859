"""The command: what scripts read, what people read, and what is refused how."""

from __future__ import annotations

import csv
import datetime as dt
import io
import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec
import psycopg
import pytest
import trio

from adapters import sandbox
from farebox import cli
from farebox.embedded import EmbeddedPostgres, EmbeddedPostgresError, has_cluster, running
from ledger.journal import Journal
from ledger.postgres import PostgresStore
from ledger.records import Reserve
from tests.fakes.console import browsing, console
from tests.fakes.model_holder import ModelHolder

KEY_RECORD = [
    "id",
    "key",
    "project",
    "name",
    "budget_usd",
    "budget_period",
    "models",
    "scopes",
    "status",
    "created_at",
    "expires_at",
    "revoked_at",
]
OPERATING = Path(__file__).parents[2] / "docs" / "operating.md"
TIERS = '[limits]\ndefault_tier = "free"\n[tiers.free]\nrpm = 20\n[tiers.pro]\nrpm = 200\n'


class Done(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


class Farebox:
    """Runs commands in this process, in a folder of their own."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._capsys = capsys
        self._monkeypatch = monkeypatch

    def __call__(self, *arguments: str) -> Done:
        self._monkeypatch.setattr(sys, "argv", ["farebox", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        captured = self._capsys.readouterr()
        return Done(int(exit_.value.code or 0), captured.out, captured.err)

    def ok(self, *arguments: str) -> str:
        """The standard output of a command that succeeds."""
        done = self(*arguments)
        assert done.code == 0, done.err
        return done.out

    def record(self, *arguments: str) -> dict[str, object]:
        """The one object that a command prints with `--json`."""
        found = json.loads(self.ok(*arguments, "--json"))
        assert isinstance(found, dict)
        return found

    def refused(self, *arguments: str, code: int = 1) -> str:
        """The one sentence of a command that fails; nothing is on standard output."""
        done = self(*arguments)
        assert done.code == code, done
        assert done.out == ""
        assert done.err.startswith("farebox: ")
        assert done.err.count("\n") == 1
        return done.err.removeprefix("farebox: ").rstrip("\n")


@pytest.fixture
def farebox(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Farebox:
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.endswith("_API_KEY"):
            monkeypatch.delenv(name)
    return Farebox(capsys, monkeypatch)


@pytest.fixture
def books(farebox: Farebox, database: str, tmp_path: Path) -> Farebox:
    """Commands over a fresh database, with two tiers."""
    url = json.dumps(database)
    (tmp_path / "farebox.toml").write_text(f"[database]\nurl = {url}\n{TIERS}")
    return farebox


# -- accounts -------------------------------------------------------------------------------------


def test_an_account_is_opened_credited_and_shown(books: Farebox) -> None:
    made = books.record("account", "create", "acme", "--credit", "25.00")
    assert {key: made[key] for key in made if key != "created_at"} == {
        "name": "acme",
        "tier": "free",
        "status": "open",
        "balance_usd": "25",
        "reserved_usd": "0",
        "charged_usd": "0",
        "credited_usd": "25",
    }
    credited = books.record("credit", "acme", "0.000000001", "--reason", "a nano-dollar")
    assert credited["balance_usd"] == "25.000000001"
    taken = books.record("credit", "acme", "-5.5", "--reason", "by mistake")
    assert taken["balance_usd"] == "19.500000001"
    assert books.record("account", "show", "acme") == taken


def test_a_credit_that_is_run_again_is_added_once(books: Farebox) -> None:
    books.ok("account", "create", "acme")
    command = ("credit", "acme", "5", "--reason", "invoice 7", "--idempotency-key", "invoice-7")
    assert books.record(*command)["balance_usd"] == "5"
    again = books(*command, "--json")
    assert (again.code, json.loads(again.out)["balance_usd"]) == (0, "5")
    assert again.err == "This was done before, with this key: nothing was changed.\n"
    taken = books("credit", "acme", "-5", *command[3:])
    assert (taken.code, taken.out) == (1, "")
    assert "'invoice-7' belongs to another adjustment of this account" in taken.err


def test_a_list_is_one_object_a_line(books: Farebox) -> None:
    books.ok("account", "create", "b")
    books.ok("account", "create", "a", "--tier", "pro")
    lines = books.ok("account", "list", "--json").splitlines()
    assert [(json.loads(line)["name"], json.loads(line)["tier"]) for line in lines] == [
        ("a", "pro"),
        ("b", "free"),
    ]


def test_tier_and_status_change(books: Farebox) -> None:
    books.ok("account", "create", "acme")
    assert books.record("account", "set", "acme", "--tier", "pro")["tier"] == "pro"
    assert books.record("account", "set", "acme", "--status", "suspended")["status"] == "suspended"
    both = books.record("account", "set", "acme", "--tier", "", "--status", "open")
    assert (both["tier"], both["status"]) == ("free", "open")


def test_people_get_a_table(books: Farebox) -> None:
    books.ok("account", "create", "acme", "--credit", "12.5")
    table = books.ok("account", "list")
    head, row = table.splitlines()
    assert head.split()[:4] == ["name", "tier", "status", "balance"]
    assert row.split()[:4] == ["acme", "free", "open", "12.5"]


def test_an_empty_list_says_what_to_do_next(books: Farebox) -> None:
    done = books("account", "list")
    assert (done.code, done.out) == (0, "")
    assert "farebox account create" in done.err
    assert books("account", "list", "--json") == Done(0, "", "")


# -- projects and keys ----------------------------------------------------------------------------


def test_a_first_key_brings_its_project_and_is_shown_once(books: Farebox) -> None:
    books.ok("account", "create", "acme")
    done = books("key", "create", "acme/chat", "--name", "first", "--json")
    key = json.loads(done.out)
    assert list(key) == KEY_RECORD
    assert key["key"].startswith("sk_farebox_")
    assert (key["project"], key["name"], key["status"]) == ("acme/chat", "first", "active")
    assert done.err == "The project acme/chat is new; it was added.\n"
    (listed,) = books.ok("key", "list", "acme/chat", "--json").splitlines()
    assert key["key"] not in listed
    assert json.loads(listed) == {name: key[name] for name in KEY_RECORD if name != "key"}


def test_a_key_may_be_made_to_manage_keys(books: Farebox) -> None:
    books.ok("account", "create", "acme")
    assert books.record("key", "create", "acme/chat")["scopes"] == []
    assert books.record("key", "create", "acme/chat", "--scope", "keys")["scopes"] == ["keys"]
    assert "'all' is not 'keys'" in books.refused(
        "key", "create", "acme/chat", "--scope", "all", code=2
    )


def test_a_key_is_nowhere_in_the_database(books: Farebox, database: str) -> None:
    books.ok("account", "create", "acme")
    plain = str(books.record("key", "create", "acme/chat")["key"])
    secret = plain.rpartition("_")[2]
    with psycopg.connect(database) as connection:
        (row,) = connection.execute("SELECT to_jsonb(k)::text FROM directory.api_key k").fetchall()
    assert secret not in row[0]
    assert secret.encode().hex() not in row[0]


def test_a_machine_with_another_secret_makes_no_keys_that_nobody_would_serve(
    books: Farebox, tmp_path: Path
) -> None:
    books.ok("account", "create", "acme")
    books.ok("key", "create", "acme/chat")
    (tmp_path / ".farebox/secret").write_text("ab" * 32)
    assert books.refused("key", "create", "acme/chat").startswith(
        "This database belongs to another server.secret"
    )
    assert len(books.ok("key", "list", "--json").splitlines()) == 1
    done = books("serve")  # a gateway would refuse every key there is
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("This database belongs to another server.secret")


def test_a_key_for_people_is_on_a_line_of_its_own(books: Farebox) -> None:
    books.ok("account", "create", "acme")
    done = books("key", "create", "acme/chat")
    (line,) = [line for line in done.out.splitlines() if "sk_farebox_" in line]
    assert len(line.split()[1]) == len("sk_farebox_") + 42
    assert "shown this once" in done.err


def test_budget_expiry_and_models_of_a_key(books: Farebox) -> None:
    books.ok("account", "create", "acme")
    budget = ("--budget", "10.00", "--budget-period", "month")
    key = books.record(
        "key",
        "create",
        "acme/chat",
        *budget,
        "--expires",
        "90d",
        "--models",
        "sandbox, farebox/auto,",
    )
    assert (key["budget_usd"], key["budget_period"]) == ("10", "month")
    assert key["models"] == ["farebox/auto", "sandbox"]
    expires_at = dt.datetime.fromisoformat(str(key["expires_at"]))
    created_at = dt.datetime.fromisoformat(str(key["created_at"]))
    assert abs(expires_at - created_at - dt.timedelta(days=90)) < dt.timedelta(seconds=5)


def test_a_revoked_key_stays_listed_as_such(books: Farebox) -> None:
    books.ok("account", "create", "acme")
    key_id = str(books.record("key", "create", "acme/chat")["id"])
    assert books.record("key", "revoke", key_id)["status"] == "revoked"
    assert json.loads(books.ok("key", "list", "acme", "--json"))["status"] == "revoked"


def test_a_project_has_a_budget_and_can_be_deleted(books: Farebox) -> None:
    books.ok("account", "create", "acme")
    made = books.record("project", "create", "acme/batch", "--budget", "50")
    assert (made["project"], made["budget_usd"]) == ("acme/batch", "50")
    assert books.record("project", "delete", "acme/batch") == {
        "project": "acme/batch",
        "deleted": True,
    }
    assert "acme" in books.refused("project", "delete", "acme/batch")


# -- the console ----------------------------------------------------------------------------------


def test_a_link_signs_in_the_operator(books: Farebox, database: str) -> None:
    link = books.ok("console", "link").strip()
    path, _, token = link.rpartition("/")
    assert path == "http://127.0.0.1:8080/console/sign-in"

    async def sign_in() -> tuple[int, object]:
        async with browsing(console(database)) as browser:
            answer = await browser.post("/console/api/session/link", json={"token": token})
            return answer.status_code, answer.json()["user"]["is_operator"]

    assert trio.run(sign_in) == (201, True)
    record = books.record("console", "link")
    assert list(record) == ["link", "expires_at"]
    assert record["link"] != link


def test_a_link_leads_to_this_machine_whatever_the_public_name(
    books: Farebox, tmp_path: Path
) -> None:
    with (tmp_path / "farebox.toml").open("a") as file:
        file.write('[server]\nlisten = "0.0.0.0:80"\npublic_url = "https://llm.example.test"\n')
    assert books.ok("console", "link").startswith("http://127.0.0.1:80/console/sign-in/")


def test_a_link_is_refused_where_no_gateway_runs_and_nothing_is_made(
    farebox: Farebox, tmp_path: Path
) -> None:
    said = farebox.refused("console", "link")
    assert said == (
        f"No gateway runs in {tmp_path}: run this in the folder of the one that does, "
        "or name its configuration with --config."
    )
    assert not list(tmp_path.iterdir())
    (tmp_path / "farebox.toml").write_text('[server]\nlisten = "127.0.0.1:8099"\n')
    with running(tmp_path / ".farebox"):
        assert farebox.ok("console", "link").startswith("http://127.0.0.1:8099/console/sign-in/")
    assert farebox.refused("console", "link") == said


def test_a_port_that_nobody_knows_makes_no_link(books: Farebox, tmp_path: Path) -> None:
    with (tmp_path / "farebox.toml").open("a") as file:
        file.write('[server]\nlisten = "127.0.0.1:0"\n')
    assert "The system chooses the port of server.listen" in books.refused("console", "link")


# -- the books ------------------------------------------------------------------------------------


def test_the_books_are_verified_with_a_figure_each(books: Farebox) -> None:
    books.ok("account", "create", "acme", "--credit", "5")
    checks = [json.loads(line) for line in books.ok("ledger", "verify", "--json").splitlines()]
    assert [check["check"] for check in checks] == [f"C{number}" for number in range(1, 9)]
    assert all(check["violations"] == 0 for check in checks)
    assert checks[2]["examined"] == "1 transfers"


@pytest.mark.unsound_books("they disagree")
def test_books_that_disagree_are_refused(books: Farebox, database: str, tmp_path: Path) -> None:
    books.ok("account", "create", "acme", "--credit", "5")
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")  # past the triggers
        connection.execute("UPDATE ledger.transfer SET amount = amount + 1")
    done = books("ledger", "verify")
    assert done.code == 1
    assert "C3: account 1: balance 5000000000, journal 5000000001" in done.err
    assert done.err.endswith("farebox: The books do not agree; the lines above say where.\n")


def test_holders_and_journal_of_a_gateway_that_never_ran(books: Farebox) -> None:
    assert books("ledger", "holders", "--json") == Done(0, "", "")
    journal = books.record("ledger", "journal", "verify")
    assert (journal["records"], journal["open_reservations"]) == (0, 0)


async def hold(database: str, *, fenced: bool) -> None:
    """A gateway on node-1 was granted half a dollar of account 1, and fell silent."""
    store = PostgresStore(database)
    holder = ModelHolder(store, "node-1")
    await holder.open()
    await holder.grant(1, 500_000_000, 500_000_000)
    if fenced:
        (row,) = await store.holders()
        assert await store.fence_holder(row.holder_id, row.heartbeat)
    await store.aclose()


def test_holders_say_what_they_hold_and_when_they_were_heard(books: Farebox, database: str) -> None:
    books.ok("account", "create", "acme", "--credit", "1")
    trio.run(partial(hold, database, fenced=False))
    holder = books.record("ledger", "holders")
    assert (holder["node"], holder["state"]) == ("node-1", "active")
    assert (holder["leases"], holder["outstanding_usd"]) == (1, "0.5")
    seen_at = dt.datetime.fromisoformat(str(holder["seen_at"]))
    assert abs(dt.datetime.now(dt.UTC) - seen_at) < dt.timedelta(minutes=1)


def test_a_node_is_declared_dead_by_who_knows_that_it_is_off(books: Farebox, database: str) -> None:
    books.ok("account", "create", "acme", "--credit", "1")
    trio.run(partial(hold, database, fenced=True))
    refusal = books.refused("ledger", "declare-dead", "node-1")
    assert refusal.startswith("Is the machine of 'node-1' off?")
    assert books.record("account", "show", "acme")["reserved_usd"] == "0.5"

    misspelt = books("ledger", "declare-dead", "nod-1", "--yes")
    assert misspelt.code == 1
    assert misspelt.err.endswith("called 'nod-1' holds credit; did you mean 'node-1'?\n")

    assert books.record("ledger", "declare-dead", "node-1", "--yes") == {
        "holder": 1,
        "node": "node-1",
        "returned_usd": "0.5",
    }
    assert books.record("account", "show", "acme")["reserved_usd"] == "0"
    assert books.record("ledger", "holders")["state"] == "reclaimed"


def test_an_export_of_nothing_is_a_head_or_no_line(books: Farebox) -> None:
    books.ok("account", "create", "acme")
    (head,) = csv.reader(io.StringIO(books.ok("usage", "export", "acme", "--since", "7d")))
    assert head[:4] == ["time", "request_id", "account", "project"]
    assert books.ok("usage", "export", "acme", "--format", "jsonl") == ""


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("account show nobody", "There is no account 'nobody'."),
        ("account create acme", "There is already an account 'acme'."),
        ("account create new --tier por", 'There is no tier "por" in [tiers]; did you mean "pro"?'),
        ("credit acme 0 --reason x", "The amount is 0: there is nothing to adjust."),
        (
            "credit acme -0.01 --reason x",
            "0.01 USD cannot be taken from 'acme': 'account show' says what is available; "
            "what gateways hold reserved comes back within a minute of rest.",
        ),
        ("account show acne", "There is no account 'acne'; did you mean 'acme'?"),
        ("account create new --credit -1", "The first credit cannot be negative: -1."),
        ("key create nobody/chat", "There is no account 'nobody'."),
        ("key revoke 99", "There is no key with the id 99; 'key list' shows them."),
        ("usage export nobody", "There is no account 'nobody'."),
    ],
)
def test_what_is_refused_is_said_in_a_sentence(books: Farebox, command: str, sentence: str) -> None:
    books.ok("account", "create", "acme")
    assert books.refused(*command.split()) == sentence


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("frobnicate", "No such command 'frobnicate'. (See farebox --help.)"),
        ("account show", "Missing argument 'NAME'. (See farebox account show --help.)"),
        ("account set acme", "Nothing to change: give --tier or --status."),
        ("credit acme 5", "Missing option '--reason'."),
        ("credit acme five --reason x", "'five' is not an amount in dollars; write it like 12.50."),
        ("key create acme", "'acme' is not ACCOUNT/PROJECT, such as acme/chat."),
        (
            "key create acme/chat --expires 90",
            "'90' is not a duration; write it like 90d, 12h or 30m.",
        ),
        ("key create acme/chat --expires 999999w", "'999999w' is more than a hundred years."),
        ("usage export acme --since 999999w", "'999999w' is more than a hundred years."),
        ("account show \udcff", "An argument is not text in UTF-8."),
        ("key create acme/chat --budget-period month", "--budget-period says how often"),
        ("usage export acme --since yesterday", "'yesterday' is no date; write 2026-11-21 or 7d."),
    ],
)
def test_a_wrong_command_line_is_exit_2(farebox: Farebox, command: str, sentence: str) -> None:
    assert sentence in farebox.refused(*command.split(), code=2)


@pytest.mark.parametrize("group", ["", "account", "project", "key", "ledger", "usage", "console"])
def test_a_group_alone_lists_its_commands_whole(farebox: Farebox, group: str) -> None:
    done = farebox(*group.split())
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Usage: farebox ")
    assert "..." not in done.err.partition("Commands:")[2]


def test_a_corrupt_journal_is_refused_until_it_is_cut(books: Farebox, tmp_path: Path) -> None:
    folder = tmp_path / ".farebox" / "ledger"
    folder.mkdir(parents=True)
    journal, _ = Journal.recover(folder, boot_id="")
    for number in (1, 2, 3):
        journal.append([Reserve(number, bytes(16), 7, 8, (70,), 1000 + number, 1, 2, 3, 4)])
    assert "another" in books.refused("ledger", "journal", "verify", "--cut")
    journal.close()
    assert books.record("ledger", "journal", "verify")["open_reservations"] == 3

    (segment,) = folder.glob("*.journal")
    data = bytearray(segment.read_bytes())
    data[data.index(msgspec.msgpack.encode(1002))] ^= 1
    segment.write_bytes(data)
    done = books("ledger", "journal", "verify")
    assert done.code == 1
    assert "corrupt" in done.out
    assert done.err.startswith("farebox: The journal is corrupt.")
    assert books.record("ledger", "journal", "verify", "--cut")["open_reservations"] == 1
    books.ok("ledger", "journal", "verify")


def test_a_database_that_is_away_is_a_sentence(farebox: Farebox, tmp_path: Path) -> None:
    (tmp_path / "farebox.toml").write_text('[database]\nurl = "postgresql://u:pw@127.0.0.1:1/x"\n')
    sentence = farebox.refused("account", "list")
    assert "does not answer" in sentence
    assert "[database] url" in sentence
    assert "pw" not in sentence


def test_a_broken_configuration_is_a_sentence(farebox: Farebox, tmp_path: Path) -> None:
    (tmp_path / "farebox.toml").write_text('[server]\nlisen = "x"\nworkers = 700\n')
    assert farebox.refused("account", "list") == (
        'server.lisen: unknown key; did you mean "listen"? (and 1 more: see `farebox check`)'
    )


# -- the models of a key --------------------------------------------------------------------------

MODELS = """
[[providers]]
name = "own"
base_url = "http://127.0.0.1:1/v1"

[[models]]
id = "noprice"
upstreams = ["own/a"]

[[models]]
id = "talks"
upstreams = [["own/b", "own/c"]]
price = { input = "1", output = "2" }
"""


@pytest.mark.parametrize("name", ["talks", "own/b", "own/c", "farebox/auto", "farebox-balanced"])
def test_a_key_may_be_limited_to_what_can_be_asked_for(
    books: Farebox, tmp_path: Path, name: str
) -> None:
    with (tmp_path / "farebox.toml").open("a") as file:
        file.write(MODELS)
    books.ok("account", "create", "acme")
    assert books.record("key", "create", "acme/web", "--models", name)["models"] == [name]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("talk", 'There is no model "talk"; did you mean "talks"?'),
        ("own/d", 'There is no model "own/d"; did you mean "own/c"?'),
        ("farebox/outo", 'There is no model "farebox/outo"; did you mean "farebox/auto"?'),
        ("zzz", 'There is no model "zzz"; GET /v1/models lists what is'),
        ("gpt-4o", 'There is no model "gpt-4o"; GET /v1/models lists what is'),
        ("noprice", 'The model "noprice" is left out; `farebox check` says why.'),
    ],
)
def test_a_key_is_not_limited_to_what_does_not_exist(
    books: Farebox, tmp_path: Path, name: str, sentence: str
) -> None:
    with (tmp_path / "farebox.toml").open("a") as file:
        file.write(MODELS)
    books.ok("account", "create", "acme")
    assert books.refused("key", "create", "acme/web", "--models", f"talks,{name}") == sentence
    assert books.ok("key", "list", "--json") == ""
    assert books.ok("project", "create", "acme/web")  # nor was this made


def test_a_model_may_be_of_a_provider_that_only_the_gateway_has_a_key_of(books: Farebox) -> None:
    books.ok("account", "create", "acme")
    for name in ("gpt-4o", "openai/gpt-4o"):
        done = books("key", "create", "acme/web", "--models", name, "--json")
        assert (done.code, json.loads(done.out)["models"]) == (0, [name])
        assert f'No provider of "{name}" has its key' in done.err
    assert books.refused("key", "create", "acme/web", "--models", "sandbxo") == (
        'There is no model "sandbxo"; did you mean "sandbox"?'
    )


# -- check ----------------------------------------------------------------------------------------


def test_check_says_every_problem_on_its_line(farebox: Farebox, tmp_path: Path) -> None:
    (tmp_path / "farebox.toml").write_text('[server]\nlisen = "x"\nworkers = 700\n')
    done = farebox("check")
    assert (done.code, done.out) == (1, "")
    assert [line.partition(":")[0] for line in done.err.splitlines()] == [
        "server.lisen",
        "server.workers",
    ]


def test_check_says_what_is_fine_and_what_has_no_effect(farebox: Farebox, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text(
        '[billing]\nreserve = "adaptive"\n[[providers]]\npreset = "openai"\napi_key = "k"\n'
        '[[models]]\nid = "a"\nupstreams = ["openai/gpt-4o"]\nlatency_class = "batch"\n'
        '[[models]]\nid = "b"\nupstreams = ["openai/nobody-knows"]\n'
    )
    done = farebox("check", "--config", "other.toml")
    assert (done.code, done.out) == (0, "The configuration is fine: 1 model from openai.\n")
    assert done.err.splitlines() == [
        'not in this version yet: models["a"].latency_class',
        'models["b"] has no price and is left out; add [models.price]',
    ]


def test_check_says_when_the_database_does_not_answer(farebox: Farebox, tmp_path: Path) -> None:
    (tmp_path / "farebox.toml").write_text('[database]\nurl = "host=/nowhere dbname=x"\n')
    done = farebox("check")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("database.url: The database does not answer: ")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(
    ("models", "sentence"),
    [
        ("", "models: no price list knows any of these providers'; add [[models]], with prices"),
        (
            '[[models]]\nid = "m"\nupstreams = ["own/x"]\n',
            "models: none is left to serve; write the price of one at least",
        ),
    ],
)
def test_check_says_when_nothing_is_left_to_serve(
    farebox: Farebox, tmp_path: Path, models: str, sentence: str
) -> None:
    (tmp_path / "farebox.toml").write_text(
        f'[[providers]]\nname = "own"\nbase_url = "http://127.0.0.1:1/v1"\n{models}'
    )
    done = farebox("check")
    assert (done.code, done.out) == (1, "")
    assert done.err.splitlines()[-1] == sentence


def test_check_says_when_there_is_no_embedded_database(
    farebox: Farebox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> Path:
        raise EmbeddedPostgresError("no PostgreSQL server found: install one")

    monkeypatch.setattr("farebox.embedded.find_binaries", none)
    done = farebox("check")
    assert (done.code, done.out) == (1, "")
    assert done.err == "database: no PostgreSQL server found: install one\n"


def test_check_refuses_a_price_that_is_not_exact(farebox: Farebox, tmp_path: Path) -> None:
    (tmp_path / "farebox.toml").write_text(
        '[[providers]]\npreset = "openai"\napi_key = "k"\n'
        '[[models]]\nid = "a"\nupstreams = ["openai/x"]\n'
        '[models.price]\ninput = "0.000000001"\noutput = "1"\nservice_tier = { flex = "0.5" }\n'
    )
    done = farebox("check")
    assert done.code == 1
    assert done.err.startswith('models["a"].price: ')


@pytest.mark.parametrize("embedded", [True, False])
def test_check_says_that_the_database_belongs_to_another_secret(
    farebox: Farebox, database: str, tmp_path: Path, embedded: bool
) -> None:
    secret = tmp_path / ".farebox" / "secret"
    if not embedded:
        (tmp_path / "farebox.toml").write_text(f"[database]\nurl = {json.dumps(database)}\n")
    farebox.ok("account", "create", "acme")
    farebox.ok("check")  # no key yet, and so no secret
    assert not secret.exists()
    farebox.ok("key", "create", "acme/web")
    farebox.ok("check")
    kept = secret.rename(tmp_path / "kept")

    gone = farebox("check")
    assert (gone.code, gone.out) == (1, "")
    assert gone.err.startswith("server.secret: the one is gone that this database's keys")
    assert not secret.exists()  # another one would be of no use

    secret.write_text("ab" * 32)
    other = farebox("check")
    assert (other.code, other.out) == (1, "")
    assert other.err.startswith("server.secret: is another one than this database's keys")
    kept.replace(secret)
    farebox.ok("check")


def test_check_as_json_says_all_in_one_object(farebox: Farebox, tmp_path: Path) -> None:
    assert farebox.record("check") == {
        "ok": True,
        "problems": [],
        "remarks": [],
        "sandbox": True,
        "models": len(sandbox.MODELS),
        "providers": ["sandbox"],
    }
    (tmp_path / "farebox.toml").write_text("[server]\nworkers = 700\n")
    done = farebox("check", "--json")
    assert (done.code, done.err) == (1, "")
    found = json.loads(done.out)
    assert (found["ok"], len(found["problems"])) == (False, 1)


def test_check_makes_nothing(farebox: Farebox, tmp_path: Path) -> None:
    farebox.ok("check")
    assert list(tmp_path.iterdir()) == []


def test_check_without_a_file_is_the_sandbox(farebox: Farebox) -> None:
    assert "the sandbox serves" in farebox.ok("check")


# -- the embedded database ------------------------------------------------------------------------


@pytest.mark.parametrize("up", [False, True])
def test_a_lost_secret_is_replaced_as_the_documents_say(
    farebox: Farebox, tmp_path: Path, up: bool
) -> None:
    farebox.ok("account", "create", "acme")
    farebox.ok("key", "create", "acme/web")
    (tmp_path / ".farebox" / "secret").unlink()
    assert "another server.secret" in farebox.refused("key", "create", "acme/web")

    text = OPERATING.read_text()
    (helper,) = re.findall(r"```sh\n(sql\(\) \{\n.*?\n\}\n)", text, re.DOTALL)
    (call,) = re.findall(r"`(sql -c \"DELETE FROM directory\.secret\")`", text)
    script = helper.replace(".venv/bin/python", sys.executable) + call
    with running(tmp_path / ".farebox") if up else nullcontext():
        done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (0, "DELETE 1\n"), done.stderr
    farebox.ok("key", "create", "acme/web")
    farebox.ok("check")


def test_commands_start_the_embedded_database_for_their_own_time(
    farebox: Farebox, tmp_path: Path
) -> None:
    farebox.ok("account", "create", "acme", "--credit", "1")
    assert not (tmp_path / ".farebox/postgres/postmaster.pid").exists()
    assert farebox.record("account", "show", "acme")["balance_usd"] == "1"


@pytest.mark.parametrize(
    "command",
    [
        "account list",
        "account show acme",
        "account set acme --status open",
        "credit acme 5 --reason gift",
        "project create acme/chat",
        "project delete acme/chat",
        "key create acme/chat",
        "key list",
        "key revoke 1",
        "ledger verify",
        "ledger holders",
        "ledger declare-dead node-1 --yes",
        "usage export acme",
    ],
)
def test_a_folder_without_a_gateway_is_said_and_left_as_it_is(
    farebox: Farebox, tmp_path: Path, command: str
) -> None:
    said = farebox.refused(*command.split())
    assert said == (
        f"No gateway's books are in {tmp_path / '.farebox'}: run this in the folder of the gateway,"
        " or name its configuration with --config. 'farebox account create' and 'farebox serve'"
        " begin new ones."
    )
    assert not list(tmp_path.iterdir())


def test_books_that_one_may_not_look_at_are_not_said_to_be_missing(tmp_path: Path) -> None:
    class Closed(type(tmp_path)):  # type: ignore[misc]  # the class of paths depends on the system
        def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
            raise PermissionError(13, "Permission denied")

    assert has_cluster(Closed(tmp_path))


def test_commands_leave_a_running_database_alone(farebox: Farebox, tmp_path: Path) -> None:
    postgres = EmbeddedPostgres(tmp_path / ".farebox")
    postgres.start()
    try:
        farebox.ok("account", "create", "acme")
        assert (tmp_path / ".farebox/postgres/postmaster.pid").exists()
    finally:
        postgres.stop()
