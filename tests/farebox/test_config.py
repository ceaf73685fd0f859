"""Configuration: what is accepted, and the sentence for everything that is not."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from farebox.config import Config, ConfigError, groups, kept, load, restart_needed
from farebox.secret import ensure_secret, find_secret

PRICED = '[[models]]\nid = "m"\nupstreams = ["openai/m"]\n'
OPENAI = {"OPENAI_API_KEY": "sk-real"}


def read(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> Config:
    file = tmp_path / "farebox.toml"
    file.write_text(text)
    return load(file, OPENAI if environ is None else environ)


def refused(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text, environ)
    return list(error.value.problems)


# -- without a file -------------------------------------------------------------------------------


def test_nothing_at_all_is_a_sandbox(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load(None, {})
    assert config.sandbox
    assert config.providers == ()
    assert config.data_dir == tmp_path / ".farebox"
    assert config.billing.margin_bps == 1000
    assert config.warnings == ()


def test_a_variable_switches_its_provider_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load(None, {"OPENAI_API_KEY": "sk-a", "DEEPSEEK_API_KEY": "sk-b", "GROQ_API_KEY": ""})
    assert [provider.name for provider in config.providers] == ["openai", "deepseek"]
    assert config.providers[1].base_url == "https://api.deepseek.com/v1"
    assert config.providers[1].api_key == ("sk-b",)
    assert not config.sandbox


def test_one_key_in_the_environment_switches_its_provider_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load(None, {"ANTHROPIC_API_KEY": "sk-ant"})
    assert not config.sandbox
    assert [provider.protocol for provider in config.providers] == ["anthropic"]
    assert config.warnings == ()


def test_the_file_in_the_working_directory_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "farebox.toml").write_text("[server]\ndrain_seconds = 3\n")
    monkeypatch.chdir(tmp_path)
    assert load(None, {}).server.drain_seconds == 3


# -- values ---------------------------------------------------------------------------------------


def test_env_and_file_stand_for_any_string(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-from-file\n")
    config = read(
        tmp_path,
        '[billing]\nmargin = "env:MARGIN"\n'
        '[[providers]]\npreset = "openai"\napi_key = ["file:key", "env:SECOND"]\n'
        'headers = { "X-Team" = "env:TEAM" }\n',
        {"MARGIN": "0.2550", "SECOND": "sk-2", "TEAM": "red"},
    )
    assert config.billing.margin_bps == 2550
    assert config.providers[0].api_key == ("sk-from-file", "sk-2")
    assert config.providers[0].headers == {"X-Team": "red"}


def test_a_provider_is_completed_from_preset_and_protocol(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        '[[providers]]\nname = "a"\nbase_url = "http://127.0.0.1:1/v1/"\n'
        '[[providers]]\npreset = "ollama"\n'
        '[[providers]]\npreset = "azure"\nbase_url = "https://r.example/openai/v1"\napi_key = "k"\n'
        '[[providers]]\nname = "g"\nbase_url = "https://g.example"\nprotocol = "gemini"\n',
    )
    a, ollama, azure, gemini = config.providers
    assert (a.base_url, a.protocol, a.auth, a.api_key) == (
        "http://127.0.0.1:1/v1",
        "openai",
        "bearer",
        (),
    )
    assert ollama.api_key == ()
    assert azure.auth == "api-key"
    assert gemini.auth == "x-goog-api-key"


def test_upstreams_are_split_at_the_first_slash_grouped_and_weighted(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        '[[providers]]\nname = "a"\nbase_url = "http://a.example"\n'
        '[[providers]]\nname = "b"\nbase_url = "http://b.example"\n'
        '[[models]]\nid = "m"\nupstreams = [["a/x/y*3", "b/x"], "a/z"]\n',
    )
    first, second = groups(config.models[0])
    assert [(ref.provider, ref.model, ref.weight) for ref in first] == [
        ("a", "x/y", 3),
        ("b", "x", 1),
    ]
    assert second[0].name == "a/z"


def test_secrets_are_in_no_repr(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        '[server]\nsecret = "s3cret"\n'
        '[database]\nurl = "postgresql://u:s3cret@h/d"\n'
        '[limits]\nvalkey_url = "redis://:s3cret@h"\n'
        '[console]\njwt_secret = "s3cret-s3cret-s3cret-s3cret-s3cret"\nissuer = "i"\n'
        '[stripe]\napi_key = "s3cret"\nwebhook_secret = "s3cret"\n'
        '[[providers]]\npreset = "openai"\napi_key = "s3cret"\nshadow_api_key = "s3cret"\n'
        'headers = { "X" = "s3cret" }\nquery = { "key" = "s3cret" }\n',
    )
    assert "s3cret" not in repr(config)


# -- problems -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('[server]\nlisen = "127.0.0.1:1"', 'server.lisen: unknown key; did you mean "listen"?'),
        ("[sever]", 'sever: unknown key; did you mean "server"?'),
        (
            "[tiers.free]\nrmp = 1",
            'tiers.free.rmp: unknown key; did you mean "rpm"?',
        ),
        ('listen = "127.0.0.1:1"', "listen: unknown key; it belongs in [server]"),
        ("workers = 2", "workers: unknown key; it belongs in [server]"),
        ('data_dir = "x"', "data_dir: unknown key; it belongs in [database]"),
        ('api_key = "k"', "api_key: unknown key; it belongs in [[providers]] or [stripe]"),
        ('[server]\nmargin = "0.1"', "server.margin: unknown key; it belongs in [billing]"),
        (
            "[limits]\nrpm = 1",
            "limits.rpm: unknown key; it belongs in [tiers.NAME] or [[models]]",
        ),
        (
            PRICED + 'input = "1"',
            'models["m"].input: unknown key; it belongs in [models.price] or '
            "[models.upstream_price.NAME]",
        ),
        (
            "[server]\nport = 1",
            'server.port: unknown key; it is a part of server.listen, such as "127.0.0.1:8080"',
        ),
        (
            "[server]\nqqq = 1",
            'server.qqq: unknown key; the nearest that is known here is "max_request_seconds"',
        ),
        (
            PRICED + "[models.price]\ninput = 2.5",
            'models["m"].price.input: expected a decimal string in quotes, such as "2.50", '
            "found 2.5",
        ),
        (
            PRICED + '[models.price]\ninput = "two"',
            'models["m"].price.input: expected a decimal string in quotes, such as "2.50", '
            'found "two"',
        ),
        (
            PRICED + '[[models.price.above]]\ninput = "1"',
            'models["m"].price.above[0].input_tokens: missing; write a whole number above 0',
        ),
        (
            "[billing]\nmargin = 0.1",
            'billing.margin: expected a decimal string in quotes, such as "2.50", found 0.1',
        ),
        (
            '[billing]\nmargin = "0.12345"',
            "billing.margin: has steps of a basis point: at most four decimals",
        ),
        (
            '[billing]\nmargin = "10.01"',
            "billing.margin: is from 0 to 10: a fraction of the cost",
        ),
        (
            '[billing]\nreserve = "half"',
            'billing.reserve: expected one of "full", "adaptive", found "half"',
        ),
        (
            "[tiers.free]\nrpm = -1",
            "tiers.free.rpm: expected a whole number, 0 or more, found -1",
        ),
        (
            "[server]\ndrain_seconds = true",
            "server.drain_seconds: expected a number of seconds from 0 to a year, found true",
        ),
        (
            "[server]\nmax_request_seconds = inf",
            "server.max_request_seconds: expected a number of seconds above 0, at most a year, "
            "found inf",
        ),
        (
            "[server]\nhead_seconds = 0",
            "server.head_seconds: expected a number of seconds above 0, at most a year, found 0",
        ),
        (
            "[server]\nkeep_alive_seconds = 40_000_000",
            "server.keep_alive_seconds: expected a number of seconds from 0 to a year, "
            "found 40000000",
        ),
        (
            "[tiers.free]\nrpm = 100_000_000_000_000_000_000",
            "tiers.free.rpm: expected a whole number, 0 or more, found one above 10^15",
        ),
        ("server = 1", "server: expected a table, found a number"),
        ("tiers = []", "tiers: expected a table of tables, found a list"),
        ("[providers]", "providers: expected a list of tables, found a table"),
        (
            '[server]\nlisten = "8080"',
            'server.listen: an address is written "host:port", such as "127.0.0.1:8080"',
        ),
        (
            '[server]\nlisten = "::1:8080"',
            'server.listen: an IPv6 address stands in brackets, such as "[::1]:8080"',
        ),
        (
            '[server]\nlisten = "h:99999"',
            "server.listen: '99999' is not a port number from 0 to 65535",
        ),
        (
            '[server]\nlisten = "127.0.0.1:9464"',
            "server.admin_listen: is the same address as server.listen; choose another",
        ),
        (
            "[server]\nworkers = 257",
            "server.workers: is at most 256; 0 means as many as there are CPUs",
        ),
        (
            "[server]\nmax_body_bytes = 100\nmax_held_bytes = 399",
            "server.max_held_bytes: is at least 400, 4 times max_body_bytes; 0 goes by the memory "
            "there is",
        ),
        (
            '[server]\npublic_url = "farebox.example"',
            'server.public_url: expected a URL that starts with "http://" or "https://"',
        ),
        (
            '[server]\ntrusted_proxies = "127.0.0.1"',
            'server.trusted_proxies: expected a list of text in quotes, found "127.0.0.1"',
        ),
        (
            '[server]\ntrusted_proxies = ["::1", "nginx"]',
            "server.trusted_proxies[1]: is no address or network; "
            'write one such as "127.0.0.1" or "10.0.0.0/8"',
        ),
        (
            '[server]\ntrusted_proxies = ["10.1.0.0/8"]',
            'server.trusted_proxies[0]: has bits behind its prefix; write "10.0.0.0/8"',
        ),
        (
            '[server]\ntrusted_proxies = ["0.0.0.0/0"]',
            "server.trusted_proxies[0]: trusts everybody to say who they are; "
            "name only your own proxies",
        ),
        (
            '[limits]\ndefault_tier = "fre"\n[tiers.free]',
            'limits.default_tier: there is no tier "fre"; did you mean "free"?',
        ),
        (
            '[limits]\ndefault_tier = "gold"',
            'limits.default_tier: there is no tier "gold"; add [tiers.gold]',
        ),
        (
            '[database]\nurl = "env:DATABASE_URL"',
            "database.url: the environment variable DATABASE_URL is not set; set it or remove this",
        ),
        (
            '[database]\nurl = "mysql://u:pw@h/d"',
            "database.url: is not what Postgres takes; write it as "
            '"postgresql://user:password@host:5432/database"',
        ),
        (
            '[database]\ndata_dir = ""',
            'database.data_dir: names no folder; write one, such as ".farebox"',
        ),
        (
            '[stripe]\napi_key = "file:nowhere"',
            "stripe.api_key: cannot read the file nowhere: No such file or directory",
        ),
        (
            '[console]\njwt_secret = "short"\nissuer = "i"',
            "console.jwt_secret: is too short for HS256: at least 32 bytes",
        ),
        (
            '[console]\njwks_url = "http://keys.test/jwks.json"\nissuer = "i"',
            "console.jwks_url: whoever is on the way could put keys of their own there; "
            'write a URL that starts with "https://"',
        ),
        (
            '[console]\njwks_url = "https://keys.test/jwks.json"',
            "console.issuer: missing; write what tokens have as iss",
        ),
        (
            '[console]\njwks_url = "https://keys.test/jwks.json"\nissuer = "i"\naudience = ""',
            "console.audience: is empty; write what tokens have as aud",
        ),
        (
            '[console]\njwks_url = "https://keys.test/jwks.json"\nissuer = "i"\n'
            'login_url = "http://id.test/authorize"',
            "console.login_url: whoever is on the way could have people sign in at theirs; "
            'write a URL that starts with "https://"',
        ),
        (
            '[console]\njwks_url = "https://keys.test/jwks.json"\nissuer = "i"\n'
            'login_url = "javascript:alert(1)"',
            'console.login_url: expected a URL that starts with "http://" or "https://"',
        ),
        (
            '[console]\nlogin_url = "https://id.test/authorize"',
            "console.login_url: nobody's tokens count here; set jwks_url or jwt_secret",
        ),
        (
            '[stripe]\napi_key = "sk_test_1"',
            "stripe.webhook_secret: missing; without it anybody could say that they have paid."
            " Write the signing secret of Stripe's endpoint, which starts with whsec_",
        ),
        (
            '[stripe]\nwebhook_secret = "whsec_1"',
            "stripe.api_key: missing; write Stripe's secret key, or remove [stripe]",
        ),
        (
            '[stripe]\napi_key = "a"\nwebhook_secret = "b"\napi_base = "http://stripe.test"',
            "stripe.api_base: the key would travel for everybody to read; "
            'write a URL that starts with "https://"',
        ),
        (
            '[stripe]\napi_base = "stripe.test"',
            'stripe.api_base: expected a URL that starts with "http://" or "https://"',
        ),
        (
            '[[providers]]\npreset = "opanai"',
            'providers["opanai"].preset: there is no preset "opanai"; did you mean "openai"?',
        ),
        (
            '[[providers]]\npreset = "groq"',
            'providers["groq"].api_key: missing; set the environment variable GROQ_API_KEY '
            "or write api_key",
        ),
        (
            '[[providers]]\npreset = "azure"\napi_key = "k"',
            'providers["azure"].base_url: missing; write the provider\'s address, '
            "such as https://RESOURCE.openai.azure.com/openai/v1",
        ),
        (
            '[[providers]]\nbase_url = "http://h"',
            "providers[0].name: missing; a provider has a name or a preset",
        ),
        (
            '[[providers]]\nname = "a/b"\nbase_url = "http://h"',
            'providers["a/b"].name: expected letters, digits, dots, dashes and underscores',
        ),
        (
            '[[providers]]\nname = "a"\nbase_url = "ftp://h"',
            'providers["a"].base_url: expected a URL that starts with "http://" or "https://"',
        ),
        (
            '[[providers]]\npreset = "anthropic"\napi_key = "k"\nbase_url = "http://h/v1/"',
            'providers["anthropic"].base_url: leave /v1 out; the protocol anthropic adds it',
        ),
        (
            '[[providers]]\nname = "g"\nprotocol = "gemini"\nbase_url = "http://h/v1beta"',
            'providers["g"].base_url: leave /v1beta out; the protocol gemini adds it',
        ),
        (
            '[[providers]]\nname = "r"\nprotocol = "openai-responses"\nbase_url = "http://h/v1"\n'
            '[[models]]\nid = "m"\nkind = "embedding"\nupstreams = ["r/m"]',
            'models["m"].upstreams: the provider "r" speaks openai-responses, '
            "which has no embeddings",
        ),
        (
            '[[providers]]\npreset = "openai"\n[[providers]]\npreset = "openai"',
            'providers["openai"].name: 2 providers have this name; rename one',
        ),
        (PRICED + PRICED, 'models["m"].id: 2 models have this id; keep one'),
        (
            '[[models]]\nid = "m"\nupstreams = ["opnai/m"]',
            'models["m"].upstreams: there is no provider "opnai"; did you mean "openai"?',
        ),
        (
            '[[models]]\nid = "m"\nupstreams = ["groq/m"]',
            'models["m"].upstreams: there is no provider "groq"; set GROQ_API_KEY or '
            'add [[providers]] with preset = "groq"',
        ),
        (
            '[[models]]\nid = "m"\nupstreams = ["openai"]',
            'models["m"].upstreams: \'openai\' is not "provider/model", such as "openai/gpt-4o"',
        ),
        (
            '[[models]]\nid = "m"\nupstreams = ["openai/m*0"]',
            "models[\"m\"].upstreams: the weight in 'openai/m*0' is not a whole number "
            "from 1 to 1000",
        ),
        (
            '[[models]]\nid = "m"\nupstreams = ["openai/m*1001"]',
            "models[\"m\"].upstreams: the weight in 'openai/m*1001' is not a whole number "
            "from 1 to 1000",
        ),
        (
            '[[models]]\nid = "m"\nupstreams = [["openai/m"], []]',
            'models["m"].upstreams: name at least one, such as "openai/gpt-4o"',
        ),
        (
            '[[models]]\nid = "m"\nupstreams = [["openai/m", "opnai/m"]]',
            'models["m"].upstreams: there is no provider "opnai"; did you mean "openai"?',
        ),
        (
            '[[models]]\nid = "m"\nupstreams = [["openai/m*2", "openai/m"]]',
            'models["m"].upstreams: "openai/m" is listed 2 times; keep one',
        ),
        (
            PRICED + "hedge_after_percentile = 100",
            'models["m"].hedge_after_percentile: expected 0 (never), or a whole number from 50 '
            "to 99, found 100",
        ),
        (
            PRICED + "hedge_after_percentile = 49",
            'models["m"].hedge_after_percentile: asks most requests twice; write 50 to 99, such '
            "as 95, or 0",
        ),
        (
            '[[providers]]\npreset = "openai"\nfailures_to_open = 0',
            'providers["openai"].failures_to_open: expected a whole number from 1 to 1000, found 0',
        ),
        (
            '[[providers]]\npreset = "openai"\nopen_seconds = 61',
            'providers["openai"].open_seconds: expected a number of seconds above 0, at most 60, '
            "found 61",
        ),
        (
            '[[models]]\nid = "m"\nupstreams = []',
            'models["m"].upstreams: name at least one, such as "openai/gpt-4o"',
        ),
        (
            '[[models]]\nid = "m"\nupstreams = ["openai/m", "openai/m"]',
            'models["m"].upstreams: "openai/m" is listed 2 times; keep one',
        ),
        (
            '[[models]]\nid = "m"\nupstreams = [3]',
            'models["m"].upstreams: expected a list in the order of trying, such as '
            '["openai/gpt-4o", "azure/gpt-4o"], found something else in it',
        ),
        (
            '[[models]]\nid = "m"\nupstreams = "openai/m"',
            'models["m"].upstreams: expected a list in the order of trying, such as '
            '["openai/gpt-4o", "azure/gpt-4o"], found "openai/m"',
        ),
        (
            '[[models]]\nid = "m"',
            'models["m"].upstreams: missing; write a list in the order of trying, such as '
            '["openai/gpt-4o", "azure/gpt-4o"]',
        ),
        (
            '[server]\nretry_budget = "20%"',
            'server.retry_budget: expected a decimal string from "0" to "1" in quotes, such as '
            '"0.20", found "20%"',
        ),
        (  # a key that was pasted to the wrong place
            '[server]\nretry_budget = "sk-proj-12345678"',
            'server.retry_budget: expected a decimal string from "0" to "1" in quotes, such as '
            '"0.20", found other text',
        ),
        (
            '[[models]]\nid = ""\nupstreams = ["openai/m"]',
            'models[""].id: expected text that is not empty, found ""',
        ),
        (
            PRICED + '[models.upstream_price."openai/n"]\ninput = "1"',
            'models["m"].upstream_price."openai/n": is not one of the model\'s upstreams; '
            'did you mean "openai/m"?',
        ),
        (
            PRICED + "max_output_tokens = 5\ndefault_max_output_tokens = 6",
            'models["m"].default_max_output_tokens: is more than max_output_tokens',
        ),
    ],
)
def test_one_problem_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    assert refused(tmp_path, text) == [sentence]


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    problems = refused(
        tmp_path,
        '[server]\nlisen = "x"\nworkers = 257\n[billing]\nmargin = 1\n[limits]\ndefault_tier = "x"',
    )
    assert [problem.partition(":")[0] for problem in problems] == [
        "server.lisen",
        "billing.margin",
        "server.workers",
        "limits.default_tier",
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('[billing]\nmargin = "env:OOPS"', 'such as "2.50", found other text'),
        ('[server]\nworkers = "sk-12345678901234567890123456789012"', "found other text"),
        ("[server]\nsecret = 5318008", "server.secret: expected text in quotes, found a number"),
        ("[limits]\nvalkey_url = 5318008.5", "found a number with a fraction"),
        ("[database]\nurl = -5318008", "found a negative number"),
        ("[database]\nurl = nan", "found no finite number"),
        ("[stripe]\napi_key = true", "found true or false"),
        ('stripe = "5318008"', "stripe: expected a table, found other text"),
        ('[[providers]]\npreset = "openai"\napi_key = 5318008', "found a number"),
        ('[[providers]]\npreset = "openai"\napi_key = [5318008]', "found something else in it"),
        ('[[providers]]\npreset = "openai"\nbase_url = 5318008', "found a number"),
        ('[[providers]]\npreset = "openai"\nheaders = "5318008"', "found other text"),
        ('[[providers]]\npreset = "openai"\nquery = { key = 5318008 }', "found something else"),
    ],
)
def test_a_problem_never_repeats_a_secret(tmp_path: Path, text: str, sentence: str) -> None:
    """What comes from elsewhere, is as long as a key, or stands where any text may stand."""
    (problem,) = refused(tmp_path, text, OPENAI | {"OOPS": "sk-5318008"})
    assert sentence in problem
    assert "5318008" not in problem
    assert "sk-" not in problem


@pytest.mark.parametrize("url", ["redis://:p@h:6379/2", "rediss://h", "valkey://h", "valkeys://h"])
def test_limits_may_be_shared_through_valkey(tmp_path: Path, url: str) -> None:
    config = read(tmp_path, '[limits]\nvalkey_url = "env:VALKEY_URL"', {"VALKEY_URL": url})
    assert config.limits.valkey_url == url
    assert config.warnings == ()


def test_a_valkey_url_that_cannot_work_is_said(tmp_path: Path) -> None:
    (problem,) = refused(tmp_path, '[limits]\nvalkey_url = "http://:secret@h"')
    assert problem.startswith("limits.valkey_url: expected a URL that starts with")
    assert "secret" not in problem


def test_limits_too_large_to_share_are_said(tmp_path: Path) -> None:
    huge = "[tiers.pro]\ntpm = 100000001\n"
    assert read(tmp_path, huge).tiers["pro"].tpm == 100_000_001
    (problem,) = refused(tmp_path, huge + '[limits]\nvalkey_url = "valkey://h"')
    assert problem.startswith("tiers.pro.tpm: is at most 100,000,000 where nodes share limits")


def test_shared_limits_without_the_client_library_are_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farebox.config.client_missing", lambda: "needs the package")
    (problem,) = refused(tmp_path, '[limits]\nvalkey_url = "valkey://h"')
    assert problem == "limits.valkey_url: needs the package"


def test_what_is_no_toml_is_said_with_its_place(tmp_path: Path) -> None:
    (problem,) = refused(tmp_path, "[server\n")
    assert "is not valid TOML" in problem
    assert "line 1" in problem


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: No such file"):
        load(tmp_path / "none.toml", {})


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[routing]\nenabled = false", "routing.enabled"),
        (PRICED + 'latency_class = "batch"', 'models["m"].latency_class'),
    ],
)
def test_what_this_version_does_not_do_is_said(tmp_path: Path, text: str, what: str) -> None:
    (warning,) = read(tmp_path, text).warnings
    assert warning.startswith(f"not in this version yet: {what}")


def test_a_weight_without_equals_is_said(tmp_path: Path) -> None:
    config = read(tmp_path, '[[models]]\nid = "m"\nupstreams = ["openai/m*3", ["openai/n*2"]]')
    assert config.warnings == tuple(
        f'models["m"].upstreams: the weight of "openai/{name}" has no effect; weights count among '
        "equals, which stand in a list of their own"
        for name in "mn"
    )


@pytest.mark.parametrize("key", ["connect_seconds", "first_byte_seconds", "idle_seconds"])
def test_patience_that_no_request_has_is_said(tmp_path: Path, key: str) -> None:
    text = f'[server]\nmax_request_seconds = 4\n[[providers]]\npreset = "openai"\n{key} ='
    (warning,) = read(tmp_path, f"{text} 4.5").warnings
    assert warning == (
        f'providers["openai"].{key}: 4.5 has no effect; every request ends after the 4 seconds '
        "of server.max_request_seconds"
    )
    assert read(tmp_path, f"{text} 4").warnings == ()


def test_patience_that_nobody_asked_for_is_nothing_to_speak_of(tmp_path: Path) -> None:
    assert read(tmp_path, "[server]\nmax_request_seconds = 4").warnings == ()


@pytest.mark.parametrize(
    "model",
    [
        '[[models]]\nid = "m"\nupstreams = [["openai/m*3", "openai/n"], "openai/o"]',
        PRICED + "hedge_after_percentile = 95",  # the one upstream is asked again
    ],
)
def test_groups_and_hedges_are_nothing_to_speak_of(tmp_path: Path, model: str) -> None:
    assert read(tmp_path, model).warnings == ()


def test_stripe_may_stand_in_on_this_machine(tmp_path: Path) -> None:
    text = '[stripe]\napi_key = "a"\nwebhook_secret = "b"\napi_base = "http://127.0.0.1:1"'
    assert read(tmp_path, text).warnings == ()


# -- reloading ------------------------------------------------------------------------------------


def test_what_a_reload_cannot_take_over_is_named(tmp_path: Path) -> None:
    running = read(tmp_path, "[server]\ndrain_seconds = 5\n[tiers.free]\nrpm = 1\n")
    same = read(tmp_path, "[server]\ndrain_seconds = 6\n[tiers.free]\nrpm = 2\n")
    assert restart_needed(running, same) == ()
    wanted = read(
        tmp_path,
        '[server]\nworkers = 4\nlisten = "127.0.0.1:1"\n[database]\ndata_dir = "elsewhere"\n'
        "[console]\nenabled = false\n",
    )
    assert restart_needed(running, wanted) == (
        "server.listen",
        "server.workers",
        "database.data_dir",
        "console.enabled",
    )


def test_a_reload_does_not_let_requests_outlive_what_the_ledger_was_told(tmp_path: Path) -> None:
    running = read(tmp_path, "")
    wanted = read(tmp_path, "[server]\nmax_request_seconds = 1800\ndrain_seconds = 7\n")
    assert restart_needed(running, wanted) == ("server.max_request_seconds",)
    assert kept(running, wanted).server.max_request_seconds == 900
    assert kept(running, wanted).server.drain_seconds == 7


# -- the server's secret --------------------------------------------------------------------------


def test_the_secret_is_made_once_and_private(tmp_path: Path) -> None:
    config = read(tmp_path, "")
    secret = ensure_secret(config, {})
    assert len(secret) == 32
    assert ensure_secret(config, {}) == secret
    assert (tmp_path / ".farebox/secret").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path / ".farebox") == ["secret"]


def test_all_who_make_the_secret_at_once_get_the_same(tmp_path: Path) -> None:
    config = read(tmp_path, "")
    found: list[bytes] = []
    gate = threading.Barrier(8)

    def make() -> None:
        gate.wait(10)
        found.append(ensure_secret(config, {}))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(found) == 8
    assert len(set(found)) == 1


def test_the_secret_may_come_from_the_environment(tmp_path: Path) -> None:
    config = read(tmp_path, '[server]\nsecret = "env:FAREBOX_SECRET"')
    assert ensure_secret(config, {"FAREBOX_SECRET": "ab" * 32}) == b"\xab" * 32


def test_a_secret_is_checked_without_making_it(tmp_path: Path) -> None:
    assert find_secret(read(tmp_path, ""), {}) is None
    assert find_secret(read(tmp_path, '[server]\nsecret = "file:later/secret"'), {}) is None
    for text in ('secret = "abc"', 'secret = "env:NOPE"'):
        with pytest.raises(ConfigError, match=r"^server\.secret: "):
            find_secret(read(tmp_path, f"[server]\n{text}"), {})
    assert os.listdir(tmp_path) == ["farebox.toml"]


def test_a_malformed_secret_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("too short\n")
    config = read(tmp_path, '[server]\nsecret = "file:mine"')
    with pytest.raises(ConfigError, match="expected 64 hexadecimal digits"):
        ensure_secret(config, {})
    assert (tmp_path / "mine").read_text() == "too short\n"
