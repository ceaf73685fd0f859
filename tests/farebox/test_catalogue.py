"""From settings to what is served: prices by precedence, caps, groups, built-in providers."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.catalogue import Catalogue, PriceSchedule
from farebox.catalogue import (
    catalogue,
    demo_provider,
    priced,
    remarks,
    sandbox_provider,
)
from farebox.config import Config, ConfigError, load
from farebox.console_part import console_of
from farebox.control import BeConsole, Served
from farebox.presets import PRESETS
from farebox.prices import known_models
from farebox.served import Settings, packed
from farebox.snapshot import on_offer
from tests.fakes.catalogues import OWN, PARTLY_PRICED

ENVIRON = {"OPENAI_API_KEY": "sk-1", "DEEPSEEK_API_KEY": "sk-2", "GROQ_API_KEY": "sk-3"}
DOLLAR = 10**9


@pytest.fixture
def config_of(tmp_path: Path) -> ConfigOf:
    return ConfigOf(tmp_path / "farebox.toml")


class ConfigOf:
    """Reads a configuration from its text."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __call__(self, text: str, environ: dict[str, str] | None = None) -> Config:
        self._file.write_text(text)
        return load(self._file, {} if environ is None else environ)


def input_price(schedule: PriceSchedule | None) -> int | None:
    """Nano-dollars per million input tokens."""
    return None if schedule is None else dict(schedule.variants[0, ""].components)["input"]


def served(config: Config) -> Catalogue:
    return catalogue(config)


# -- the model of a first call --------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.example])
def test_a_preset_s_example_is_a_chat_model_that_it_serves(name: str) -> None:
    known = known_models(name)[PRESETS[name].example]
    assert (known.id, known.kind, known.deprecated) == (PRESETS[name].example, "chat", False)


@pytest.mark.parametrize(
    ("environ", "example"),
    [
        ({"OPENAI_API_KEY": "1", "ANTHROPIC_API_KEY": "2"}, PRESETS["openai"].example),
        ({"ANTHROPIC_API_KEY": "2"}, PRESETS["anthropic"].example),
        ({}, "sandbox"),
    ],
)
def test_a_first_call_asks_a_current_model(
    config_of: ConfigOf, environ: dict[str, str], example: str
) -> None:
    assert served(config_of("", environ)).example == example


def test_a_first_call_asks_what_was_configured_and_has_a_price(config_of: ConfigOf) -> None:
    models = """
[[models]]
id = "unpriced"
upstreams = ["own/a"]

[[models]]
id = "vectors"
kind = "embedding"
upstreams = ["own/b"]
price = { input = "1" }

[[models]]
id = "talks"
upstreams = ["own/c"]
price = { input = "1", output = "2" }
"""
    assert served(config_of(OWN + models)).example == "talks"
    assert served(config_of(OWN)).example == ""


# -- nothing configured ---------------------------------------------------------------------------


def test_the_sandbox_serves_for_a_visible_price(config_of: ConfigOf) -> None:
    found = catalogue(config_of(""), sandbox_provider("http://127.0.0.1:9/v1"))
    assert found.providers["sandbox"].base_url == "http://127.0.0.1:9/v1"
    assert found.models
    assert all((input_price(model.prices) or 0) > 0 for model in found.models.values())
    assert {model.kind for model in found.models.values()} == {"chat", "embedding"}


def test_the_demo_serves_its_one_model(config_of: ConfigOf) -> None:
    found = catalogue(config_of(""), demo_provider("http://127.0.0.1:9/v1"))
    (model,) = found.models.values()
    assert model.upstreams[0].name == f"demo/{model.id}"
    assert model.context_window == 4096


def test_keys_in_the_environment_serve_their_known_models(config_of: ConfigOf) -> None:
    found = served(config_of("", ENVIRON))
    assert list(found.providers) == ["openai", "deepseek", "groq"]
    gpt = found.models["gpt-4o"]
    assert gpt.upstreams[0].name == "openai/gpt-4o"
    assert input_price(gpt.prices) == 2_500_000_000
    assert (gpt.context_window, gpt.max_output_tokens) == (128_000, 16_384)
    assert "tools" in gpt.capabilities
    assert "deepseek-chat" in found.models
    assert found.models["text-embedding-3-small"].kind == "embedding"
    assert "gpt-4o-2024-11-20" not in found.models  # an alias is no model of its own


def test_of_two_providers_of_one_id_the_first_serves(config_of: ConfigOf) -> None:
    text = '[[providers]]\npreset = "azure"\nbase_url = "https://r.example"\napi_key = "k"\n'
    azure_first = served(config_of(text + '[[providers]]\npreset = "openai"\n', ENVIRON))
    assert azure_first.models["o1"].upstreams[0].name == "azure/o1"


def test_deprecated_models_are_priced_but_not_listed(config_of: ConfigOf) -> None:
    environ = {"MOONSHOT_API_KEY": "k"}
    assert "kimi-k2.5" not in served(config_of("", environ)).models
    text = '[[models]]\nid = "old"\nupstreams = ["moonshot/kimi-k2.5"]\n'
    assert input_price(served(config_of(text, environ)).models["old"].prices)


# -- prices ---------------------------------------------------------------------------------------


def test_the_most_particular_price_wins(config_of: ConfigOf) -> None:
    found = served(
        config_of(
            OWN + '[[providers]]\npreset = "openai"\n'
            '[[models]]\nid = "m"\nupstreams = ["openai/gpt-4o", "own/x"]\n'
            '[models.price]\ninput = "3"\noutput = "4"\n'
            '[models.upstream_price."own/x"]\ninput = "1"\noutput = "2"\n',
            ENVIRON,
        )
    )
    model = found.models["m"]
    assert [input_price(upstream.prices) for upstream in model.upstreams] == [
        3 * DOLLAR,
        1 * DOLLAR,
    ]
    assert model.prices is model.upstreams[0].prices


def test_the_packaged_price_is_found_by_upstream_also_by_its_alias(config_of: ConfigOf) -> None:
    text = '[[models]]\nid = "mine"\nupstreams = ["openai/gpt-4o-2024-11-20"]\n'
    model = served(config_of(text, ENVIRON)).models["mine"]
    assert input_price(model.prices) == 2_500_000_000
    assert model.upstreams[0].model == "gpt-4o-2024-11-20"
    assert model.max_output_tokens == 16_384


@pytest.mark.parametrize(
    ("price", "sentence"),
    [
        ("", " has no price and is left out; add [models.price]"),
        (
            '[models.price]\ninput = "1"\n',
            ".price has no output, so the model is left out; write what a million tokens cost",
        ),
        (
            '[models.price]\noutput = "1"\n',
            ".price has no input, so the model is left out; write what a million tokens cost",
        ),
        (
            '[models.price]\ncached_input = "1"\n',
            ".price has no input and no output, so the model is left out; write what a million "
            "tokens cost",
        ),
        (
            'kind = "embedding"\n[models.price]\noutput = "1"\n',
            ".price has no input, so the model is left out; write what a million tokens cost",
        ),
        (
            '[models.upstream_price."own/x"]\ninput = "1"\n',
            '.upstream_price."own/x" has no output, so the model is left out; write what a million '
            "tokens cost",
        ),
        (
            '[models.price]\ninput = "1"\noutput = "2"\n'
            '[models.upstream_price."own/x"]\noutput = "1"\n',
            '.upstream_price."own/x" has no input, so the model is left out; write what a million '
            "tokens cost",
        ),
    ],
)
def test_an_unpriced_model_is_never_sold_and_said(
    config_of: ConfigOf, price: str, sentence: str
) -> None:
    config = config_of(OWN + '[[models]]\nid = "m"\nupstreams = ["own/x"]\n' + price)
    found = served(config)
    assert not priced(found.models["m"])
    assert remarks(config, found) == [f'models["m"]{sentence}']


def test_allow_unpriced_sells_it_for_nothing(config_of: ConfigOf) -> None:
    model = served(
        config_of(
            "[billing]\nallow_unpriced = true\n"
            + OWN
            + '[[models]]\nid = "m"\nupstreams = ["own/x"]\n'
        )
    ).models["m"]
    assert priced(model)
    assert input_price(model.upstreams[0].prices) == 0


def test_a_price_that_is_not_exact_is_a_problem(config_of: ConfigOf) -> None:
    config = config_of(
        OWN + '[[models]]\nid = "m"\nupstreams = ["own/x"]\n'
        '[models.price]\ninput = "0.000000001"\noutput = "1"\n'
        '[models.price.service_tier]\nflex = "0.5"\n'
    )
    with pytest.raises(ConfigError, match=r'models\["m"\]\.price: .* finer than a nano-dollar'):
        served(config)


def test_what_is_sold_is_what_can_be_asked_for(config_of: ConfigOf) -> None:
    config = config_of(PARTLY_PRICED)
    found = on_offer(config, served(config))
    assert list(found.models) == ["talks"]
    for name in ("talks", "own/c", "farebox/auto", "farebox-cost-saver"):
        assert found.find(name) is not None, name
    for name in ("noprice", "own/a", "own/b", "farebox/else", "talk"):
        assert found.find(name) is None, name


def test_virtual_models_are_sold_under_the_brand_and_with_a_model_only(
    config_of: ConfigOf,
) -> None:
    branded = config_of(PARTLY_PRICED + '[server]\nbrand = "acme"\n')
    found = on_offer(branded, served(branded))
    assert found.find("acme/auto") is not None
    assert found.find("farebox/auto") is None
    empty = config_of(OWN)
    assert on_offer(empty, served(empty)).find("farebox/auto") is None


def test_a_model_s_price_is_that_of_the_first_upstream_that_has_one(config_of: ConfigOf) -> None:
    assert input_price(served(config_of(PARTLY_PRICED)).models["talks"].prices) == DOLLAR


def test_the_console_knows_what_is_sold(config_of: ConfigOf) -> None:
    settings = packed(Settings(config=config_of(PARTLY_PRICED), built_in=None))
    console = console_of(
        BeConsole(
            served=Served(version=1, settings=settings),
            conninfo="",
            secret=b"",
            listening=0,
            public_url="",
            gateway_url="",
            admin_url="",
        )
    )
    assert list(console.server.catalogue.models) == ["talks"]
    assert console.server.catalogue.find("noprice") is None


# -- caps and details -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "cap"),
    [
        ("", 16_384),
        ("max_output_tokens = 4096", 4096),
        ("default_max_output_tokens = 1000", 1000),
        ('capabilities = ["reasoning"]', 32_768),
        ('capabilities = ["reasoning"]\nmax_output_tokens = 20000', 20_000),
        ("context_window = 8192", 4096),
        ("context_window = 128000", 16_384),
    ],
)
def test_the_cap_where_the_client_sets_none(config_of: ConfigOf, settings: str, cap: int) -> None:
    text = f'{OWN}[[models]]\nid = "m"\nupstreams = ["own/x"]\n{settings}\n'
    assert served(config_of(text)).models["m"].default_max_output_tokens == cap


def test_groups_keep_their_order_and_weights(config_of: ConfigOf) -> None:
    model = served(
        config_of(OWN + '[[models]]\nid = "m"\nupstreams = [["own/a*3", "own/b"], "own/c"]\n')
    ).models["m"]
    assert [[(u.model, u.weight) for u in group] for group in model.groups] == [
        [("a", 3), ("b", 1)],
        [("c", 1)],
    ]


def test_an_upstream_of_another_kind_is_refused(config_of: ConfigOf) -> None:
    config = config_of(
        '[[models]]\nid = "m"\nupstreams = [["openai/gpt-4o", "openai/text-embedding-3-small"]]\n',
        ENVIRON,
    )
    with pytest.raises(ConfigError) as error:
        served(config)
    assert error.value.problems == (
        'models["m"].upstreams: "openai/text-embedding-3-small" is for embedding, not for chat; '
        'set kind = "embedding", or leave it out',
    )


def test_vectors_that_cannot_be_compared_are_said(config_of: ConfigOf) -> None:
    def said(*upstreams: str) -> list[str]:
        listed = ", ".join(f'"openai/{upstream}"' for upstream in upstreams)
        text = f'[[models]]\nid = "m"\nkind = "embedding"\nupstreams = [{listed}]\n'
        config = config_of(text, ENVIRON)
        return remarks(config, served(config))

    assert said("text-embedding-3-small") == []
    assert said("text-embedding-3-small", "text-embedding-3-large") == [
        'models["m"].upstreams: "openai/text-embedding-3-small" and '
        '"openai/text-embedding-3-large" make vectors that cannot be compared; give each model '
        "an id of its own"
    ]


def test_every_protocol_is_served(config_of: ConfigOf) -> None:
    text = (
        OWN + '[[providers]]\npreset = "anthropic"\napi_key = "k"\n'
        '[[models]]\nid = "both"\nupstreams = ["anthropic/claude", "own/x"]\n'
    )
    both = served(config_of(text)).models["both"]
    assert [upstream.provider.protocol for upstream in both.upstreams] == ["anthropic", "openai"]


def test_openai_itself_serves_responses_natively(config_of: ConfigOf) -> None:
    found = served(config_of(OWN + '[[providers]]\npreset = "openai"\napi_key = "k"\n')).providers
    assert found["openai"].protocol_for("openai-responses") == "openai-responses"
    assert found["openai"].protocol_for("anthropic") == "openai"
    assert found["own"].protocol_for("openai-responses") == "openai"


def test_a_provider_is_reached_as_configured(config_of: ConfigOf) -> None:
    provider = served(
        config_of(
            '[[providers]]\nname = "own"\nbase_url = "http://h/v1/"\napi_key = ["a", "b"]\n'
            'headers = { "X-Team" = "red" }\nquery = { "api-version" = "1" }\nidle_seconds = 7\n'
            "failures_to_open = 3\nopen_seconds = 1.5\n"
        )
    ).providers["own"]
    assert provider.base_url == "http://h/v1"
    assert provider.api_keys == ("a", "b")
    assert provider.headers == (("x-team", "red"),)
    assert provider.query == (("api-version", "1"),)
    assert provider.idle_seconds == 7
    assert (provider.failures_to_open, provider.open_seconds) == (3, 1.5)
    assert provider.output_cap_field == "max_tokens"


@pytest.mark.parametrize(
    "provider",
    [
        'preset = "openai"\napi_key = "k"',
        'preset = "azure"\napi_key = "k"\nbase_url = "https://r.example"',
        'name = "same"\nbase_url = "https://api.openai.com/v1"',
    ],
)
def test_openai_itself_wants_another_name_for_the_cap(config_of: ConfigOf, provider: str) -> None:
    (found,) = served(config_of(f"[[providers]]\n{provider}\n")).providers.values()
    assert found.output_cap_field == "max_completion_tokens"


def test_an_unknown_reference_model_is_said(config_of: ConfigOf) -> None:
    config = config_of('[routing]\ndefault_reference = "gpt-4oo"\n', ENVIRON)
    assert remarks(config, served(config)) == [
        'routing.default_reference: there is no model "gpt-4oo"; did you mean "gpt-4o"?'
    ]
