"""The packaged price list, against genai-prices as an independent calculator."""

from __future__ import annotations

import datetime as dt
import random
import subprocess
import sys
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path

import msgspec
import pytest
from genai_prices.data import providers as oracle_providers
from genai_prices.types import ModelInfo, Provider
from genai_prices.types import Usage as OracleUsage

from adapters.canonical import Usage
from adapters.catalogue import PriceSchedule
from adapters.pricing import build_schedule, quantities, variant
from farebox.presets import PRESETS
from farebox.prices import KnownModel, PriceFile, known_models, price_file
from ledger.money import NANO_PER_USD, Price, cost_and_charge

ROOT = Path(__file__).resolve().parents[2]
ORACLE: Mapping[str, str] = {
    "openai": "openai",
    "anthropic": "anthropic",
    "gemini": "google",
    "azure": "azure",
    "deepseek": "deepseek",
    "moonshot": "moonshotai",
    "minimax": "minimax",
    "zhipu": "zai",
    "mistral": "mistral",
    "xai": "x-ai",
    "groq": "groq",
    "together": "together",
    "openrouter": "openrouter",
}
PRICED = (*ORACLE, "qwen")  # Alibaba's own prices are not in genai-prices
USAGES_PER_MODEL = 6
HALF_A_NANO = Decimal("0.5")
NOISE = Decimal("0.001")  # nano-dollars: what float noise in the source may amount to


def listed(preset: str) -> PriceFile:
    file = price_file(preset)
    assert file is not None, preset
    return file


def schedule_of(model: KnownModel) -> PriceSchedule:
    schedule = build_schedule(msgspec.to_builtins(model.price), model.kind)
    assert schedule is not None, model.id
    return schedule


def usages(model: KnownModel) -> Iterator[Usage]:
    """Random usages, the same in every run, on both sides of each long-context threshold."""
    dice = random.Random(model.id)
    sizes = [dice.randrange(0, 2_000_000) for _ in range(USAGES_PER_MODEL)]
    for above in model.price.above:
        sizes += [above.input_tokens, above.input_tokens + 1]
    for size in sizes:
        parts = sorted(dice.randrange(0, size + 1) for _ in range(4))
        price = model.price
        yield Usage(
            input_tokens=size,
            cached_input_tokens=parts[0] if price.cached_input else 0,
            cache_write_tokens=parts[1] - parts[0] if price.cache_write else 0,
            cache_write_1h_tokens=parts[2] - parts[1] if price.cache_write_1h else 0,
            audio_input_tokens=parts[3] - parts[2] if price.audio_input else 0,
            output_tokens=dice.randrange(0, 100_000) if model.kind == "chat" else 0,
        )


def for_oracle(usage: Usage) -> OracleUsage:
    counts = {
        "input_tokens": usage.input_tokens,
        "cache_read_tokens": usage.cached_input_tokens,
        "cache_write_tokens": usage.cache_write_tokens + usage.cache_write_1h_tokens,
        "cache_write_1h_tokens": usage.cache_write_1h_tokens,
        "input_audio_tokens": usage.audio_input_tokens,
        "cache_audio_read_tokens": 0,
        "cache_audio_write_tokens": 0,
        "cache_audio_write_1h_tokens": 0,
        "output_tokens": usage.output_tokens,
    }
    return OracleUsage(**counts)


def moments(file: PriceFile, model: KnownModel) -> list[dt.datetime]:
    """Noon of the list's day; all its half hours where the price depends on the hour."""
    midnight = dt.datetime.fromisoformat(file.date).replace(tzinfo=dt.UTC)
    if not model.note:
        return [midnight + dt.timedelta(hours=12)]
    return [midnight + dt.timedelta(minutes=30 * step) for step in range(48)]


def oracle_of(preset: str, model: KnownModel) -> tuple[Provider, ModelInfo]:
    (provider,) = [found for found in oracle_providers if found.id == ORACLE[preset]]
    names = {model.id.lower(), *(alias.lower() for alias in model.aliases)}
    exact = [info for info in provider.models if info.id.lower() in names]
    assert exact, f"{preset}/{model.id} is not in genai-prices"
    return provider, exact[0]


def rounded_up(model: KnownModel) -> Decimal:
    """How much dearer a token may be than at its source: what is finer than six places goes up."""
    texts = msgspec.to_builtins(model.price).values()
    longest = max(len(text.partition(".")[2]) for text in texts if isinstance(text, str))
    return Decimal("0.001") if longest == 6 else Decimal(0)


@pytest.mark.parametrize("preset", ORACLE)
def test_costs_are_those_of_an_independent_calculator(preset: str) -> None:
    file = listed(preset)
    for model in file.models:
        provider, info = oracle_of(preset, model)
        schedule = schedule_of(model)
        for usage in usages(model):
            rates = variant(schedule, usage.input_tokens, "")
            cost, _ = cost_and_charge(Price(0, dict(rates.components), 0), quantities(usage))
            theirs = max(
                info.calc_price(
                    for_oracle(usage), provider, genai_request_timestamp=moment
                ).total_price
                for moment in moments(file, model)
            )
            difference = cost - theirs * NANO_PER_USD
            above = HALF_A_NANO + NOISE + usage.input_tokens * rounded_up(model)
            assert -HALF_A_NANO - NOISE <= difference <= above, (model.id, usage, cost, theirs)


@pytest.mark.parametrize("tier", ["flex", "priority"])
def test_a_service_tier_never_costs_less_than_its_provider_asks(tier: str) -> None:
    file = listed("openai")
    tiered = [model for model in file.models if tier in model.price.service_tier]
    assert tiered
    for model in tiered:
        provider, info = oracle_of("openai", model)
        usage = Usage(input_tokens=10_000, output_tokens=3_000)
        rates = variant(schedule_of(model), usage.input_tokens, tier)
        cost, _ = cost_and_charge(Price(0, dict(rates.components), 0), quantities(usage))
        theirs = info.calc_price(
            for_oracle(usage),
            provider,
            genai_request_timestamp=moments(file, model)[0],
            price_context={"service_tier": tier},
        ).total_price
        assert cost >= theirs * NANO_PER_USD - HALF_A_NANO, model.id


@pytest.mark.parametrize("preset", PRICED)
def test_every_entry_can_be_sold(preset: str) -> None:
    file = listed(preset)
    assert file.preset == preset
    assert file.source.startswith("https://")
    assert file.date == dt.date.fromisoformat(file.date).isoformat()
    assert file.models
    ids = [model.id for model in file.models]
    assert len(ids) == len(set(ids))
    for model in file.models:
        base = dict(variant(schedule_of(model), 0, "").components)
        assert base["input"] > 0, model.id
        assert model.kind == "embedding" or base["output"] > 0, model.id
        for (_, tier), rates in schedule_of(model).variants.items():
            assert all(amount >= 0 for _, amount in rates.components), (model.id, tier)


def test_every_preset_with_public_prices_has_a_list() -> None:
    assert set(PRICED) <= set(PRESETS)
    assert {preset for preset in PRESETS if known_models(preset)} == set(PRICED)


def test_no_float_noise_is_left() -> None:
    for preset in PRICED:
        for model in listed(preset).models:
            for text in msgspec.structs.asdict(model.price).values():
                if isinstance(text, str):
                    assert len(text.partition(".")[2]) <= 6, (preset, model.id)


def test_an_alias_finds_its_model_and_an_id_goes_before_it() -> None:
    known = known_models("openai")
    assert known["gpt-4o-2024-11-20"].id == "gpt-4o"
    assert all(known[model.id] is model for model in known.values())


def test_a_preset_without_public_prices_knows_no_model() -> None:
    assert price_file("ollama") is None
    assert known_models("vllm") == {}


def test_the_list_is_what_its_script_writes(tmp_path: Path) -> None:
    """Byte for byte, from the pinned genai-prices: nobody edits a price by hand."""
    (date,) = {listed(preset).date for preset in PRICED}
    subprocess.run(
        [sys.executable, ROOT / "scripts/import_prices.py", "--date", date, "--target", tmp_path],
        check=True,
        capture_output=True,
        timeout=60,
    )
    packaged = {path.name: path.read_bytes() for path in (ROOT / "farebox/prices").glob("*.json")}
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == packaged
