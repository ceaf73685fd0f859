"""Write the packaged price list, `farebox/prices/*.json`, from two public data sets.

    python scripts/import_prices.py [--litellm model_prices_and_context_window_backup.json]

Prices come from the installed `genai-prices` (MIT). Output limits and capabilities, and the prices
of Alibaba's own Qwen models, which genai-prices does not list, come from litellm's file (MIT; it
is inside its wheel, which is too large to depend on); without it, what the packaged list says of
them is kept. The same sources and the same `--date` give the same bytes. The rules:

- Exact or absent: a model that charges for something we cannot count is left out and named.
- Where a price depends on the hour, the dearest hour is taken: prepaid credit must cover it.
- Float noise in the source is rounded away at six decimals; what is finer is rounded up.
- A price of zero is left out: giving something away is an operator's decision.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import ROUND_UP, Decimal
from pathlib import Path

import msgspec
from genai_prices import types as genai
from genai_prices.data import providers as genai_providers

from adapters.settings import PriceSettings, RatesAbove
from farebox.prices import KnownModel, PriceFile, price_file

TARGET = Path(__file__).resolve().parents[1] / "farebox" / "prices"
SIX_PLACES = Decimal("0.000001")
NOISE = Decimal("0.000000001")
HALF_HOURS = 48

# preset → (provider in genai-prices, prefix of its models in litellm's file)
SOURCES: Mapping[str, tuple[str, str]] = {
    "openai": ("openai", ""),
    "anthropic": ("anthropic", ""),
    "gemini": ("google", "gemini/"),
    "azure": ("azure", "azure/"),
    "deepseek": ("deepseek", "deepseek/"),
    "moonshot": ("moonshotai", "moonshot/"),
    "minimax": ("minimax", "minimax/"),
    "zhipu": ("zai", "zai/"),
    "mistral": ("mistral", "mistral/"),
    "xai": ("x-ai", "xai/"),
    "groq": ("groq", "groq/"),
    "together": ("together", "together_ai/"),
    "openrouter": ("openrouter", "openrouter/"),
}

# price in genai-prices → (unit of ours, how many of them it is for)
UNITS: Mapping[str, tuple[str, int]] = {
    "input_mtok": ("input", 1),
    "cache_read_mtok": ("cached_input", 1),
    "cache_write_mtok": ("cache_write", 1),
    "cache_write_1h_mtok": ("cache_write_1h", 1),
    "input_audio_mtok": ("audio_input", 1),
    "output_mtok": ("output", 1),
    "output_reasoning_mtok": ("reasoning", 1),
    "output_audio_mtok": ("audio_output", 1),
    "web_searches_kcount": ("web_search", 1000),
}
UNCOUNTED = {
    "storage_searches_kcount",  # a tool of the Responses API, billed there
    "cache_audio_read_mtok",  # no provider says how much of what was cached was audio
}

SAME_TIERS = ("default", "fast")  # the standard price, and another name of priority

# Not chat and not embedding, whatever their price is called.
OTHER_KINDS = re.compile(
    r"realtime|transcribe|whisper|tts|image|moderation|dall-e|sora|veo|imagen|lyria|live|ocr|"
    r"rerank|computer-use|native-audio|instruct-0914|turbo-instruct|^ft:|^gpt-4o-mini-.*ft-|"
    r"^(text-)?(ada|babbage|curie|davinci)|:batch$|:free$"
)

CAPABILITIES: Mapping[str, str] = {
    "supports_function_calling": "tools",
    "supports_vision": "vision",
    "supports_response_schema": "json_schema",
    "supports_audio_input": "audio",
    "supports_pdf_input": "file",
    "supports_reasoning": "reasoning",
}


@dataclass(frozen=True)
class Facts:
    """What genai-prices does not know of a model; 0 and empty: nobody knows."""

    context_window: int = 0
    max_output_tokens: int = 0
    capabilities: tuple[str, ...] = ()


FactsOf = Callable[[Iterable[str]], Facts]  # by any of a model's names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--litellm", type=Path, help="litellm's JSON file")
    parser.add_argument(
        "--date", type=dt.date.fromisoformat, default=dt.datetime.now(dt.UTC).date()
    )
    parser.add_argument("--target", type=Path, default=TARGET, help="the folder to write to")
    options = parser.parse_args()
    litellm = None
    if options.litellm:
        litellm = json.loads(options.litellm.read_text(), parse_float=Decimal)
    by_id = {provider.id: provider for provider in genai_providers}
    for preset, (provider_id, prefix) in SOURCES.items():
        provider = by_id[provider_id]
        facts = kept_facts(preset) if litellm is None else litellm_facts(litellm, prefix)
        models = genai_models(preset, provider, options.date, facts)
        write(options.target, preset, (provider.pricing_urls or [""])[0], options.date, models)
    qwen = listed(QWEN_PRESET) if litellm is None else qwen_models(litellm)
    write(options.target, QWEN_PRESET, QWEN_SOURCE, options.date, qwen)


def listed(preset: str) -> tuple[KnownModel, ...]:
    """The packaged list of a preset, as it is."""
    file = price_file(preset)
    return file.models if file else ()


def kept_facts(preset: str) -> FactsOf:
    """What the packaged list says."""
    known = {model.id: model for model in listed(preset)}

    def find(names: Iterable[str]) -> Facts:
        model = next((known[name] for name in names if name in known), None)
        if model is None:
            return Facts()
        return Facts(model.context_window, model.max_output_tokens, model.capabilities)

    return find


def write(
    target: Path, preset: str, source: str, today: dt.date, models: Iterable[KnownModel]
) -> None:
    """One file a preset, one line a model, so that a change of price is a change of line."""
    file = PriceFile(preset=preset, date=today.isoformat(), source=source)
    known = sorted(models, key=lambda model: model.id)
    lines = ",\n".join(f"  {msgspec.json.encode(model).decode()}" for model in known)
    head = msgspec.json.encode(file).decode().removesuffix("}")
    (target / f"{preset}.json").write_text(f'{head},"models":[\n{lines}\n]}}\n')
    say(f"{preset}: {len(known)} models")


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


# -- genai-prices ---------------------------------------------------------------------------------


def genai_models(
    preset: str,
    provider: genai.Provider,
    today: dt.date,
    facts_of: FactsOf,
) -> Iterator[KnownModel]:
    """Every model of `provider` that can be priced exactly."""
    for info in provider.models:
        if preset == "gemini" and not info.id.startswith("gemini"):
            continue  # Google also resells others' models, under another protocol
        if OTHER_KINDS.search(info.id):
            continue
        now, hourly = price_of(info, today)
        counted = {key: value for key, value in vars(now).items() if value is not None}
        if strange := counted.keys() - UNITS.keys() - UNCOUNTED:
            say(f"  left out {preset}/{info.id}: charges for {', '.join(sorted(strange))}")
            continue
        kind = "chat" if "output_mtok" in counted else "embedding"
        if "input_mtok" not in counted or (kind == "embedding" and "embed" not in info.id):
            continue
        price = price_settings(now, tiers(info, now, today))
        if Decimal(price.input or 0) == 0:
            continue
        model_id, aliases = names(preset, info)
        facts = facts_of((model_id, *aliases))
        window = info.context_window or facts.context_window
        output = facts.max_output_tokens if kind == "chat" else 0
        yield KnownModel(
            id=model_id,
            aliases=aliases,
            kind=kind,
            context_window=window,
            max_output_tokens=min(output, window) if window else output,
            capabilities=facts.capabilities,
            deprecated=bool(info.deprecated),
            note="the price of the dearest hour of the day" if hourly else "",
            price=price,
        )


def price_of(info: genai.ModelInfo, today: dt.date) -> tuple[genai.ModelPrice, bool]:
    """Today's price and whether it depends on the hour; the dearest hour's if it does."""
    midnight = dt.datetime.combine(today, dt.time(), dt.UTC)
    over_the_day = [
        info.get_prices(midnight + dt.timedelta(minutes=30 * step)) for step in range(HALF_HOURS)
    ]
    dearest = max(over_the_day, key=lambda price: base(price, "input_mtok"))
    return dearest, any(price != dearest for price in over_the_day)


def base(price: genai.ModelPrice, key: str) -> Decimal:
    """The untiered price for `key`, 0 where there is none."""
    value = getattr(price, key, None)
    return Decimal(0) if value is None else at(value, 0)


def at(value: Decimal | genai.TieredPrices, tokens: int) -> Decimal:
    """What `value` is for a request with `tokens` of input; tiers start above their threshold."""
    if not isinstance(value, genai.TieredPrices):
        return value
    return next((tier.price for tier in reversed(value.tiers) if tokens > tier.start), value.base)


def price_settings(price: genai.ModelPrice, service_tier: dict[str, str]) -> PriceSettings:
    """The rates of `price` with its long-context tiers."""
    values = {
        key: value for key, value in vars(price).items() if value is not None and key in UNITS
    }
    starts = sorted(
        {
            tier.start
            for value in values.values()
            if isinstance(value, genai.TieredPrices)
            for tier in value.tiers
        }
    )

    def rates(tokens: int) -> dict[str, str]:
        return {
            UNITS[key][0]: dollars(at(value, tokens) / UNITS[key][1])
            for key, value in values.items()
        }

    return PriceSettings(
        **rates(0),
        above=tuple(RatesAbove(input_tokens=start, **rates(start + 1)) for start in starts),
        service_tier=service_tier,
    )


def tiers(info: genai.ModelInfo, price: genai.ModelPrice, today: dt.date) -> dict[str, str]:
    """A multiplier for each service tier; where kinds differ, the largest."""
    noon = dt.datetime.combine(today, dt.time(12), dt.UTC)
    multipliers: dict[str, str] = {}
    for variant in info.price_variants or ():
        tier = variant.when.get("service_tier")
        if tier in (None, *SAME_TIERS) or len(variant.when) != 1:
            continue
        if variant.constraint is not None and not variant.constraint.active(noon):
            continue
        ratios = [
            (at(changed, 0) if changed is not None else at(value, 0)) / at(value, 0)
            for key, value in vars(price).items()
            if value is not None and key in UNITS and key != "web_searches_kcount" and at(value, 0)
            for changed in [getattr(variant.prices, key, None)]
        ]
        multipliers[str(tier)] = plain(max(ratios).quantize(SIX_PLACES, ROUND_UP))
    return multipliers


def names(preset: str, info: genai.ModelInfo) -> tuple[str, tuple[str, ...]]:
    """The model's id as the provider's API spells it, and its other exact names."""
    known = [info.id, *equals(info.match)]
    own = info.id
    if preset == "zhipu":
        own = info.id.lower()
    if preset == "minimax":
        own = next((name for name in known if name.startswith("MiniMax-")), info.id)
    return own, tuple(dict.fromkeys(name for name in known if name != own))


def equals(match: genai.MatchLogic) -> list[str]:
    """The exact names in a match clause; patterns are left out, they guess."""
    if isinstance(match, genai.ClauseEquals):
        return [match.equals]
    if isinstance(match, genai.ClauseOr):
        return [name for part in match.or_ for name in equals(part)]
    return []


# -- litellm --------------------------------------------------------------------------------------

Rows = Mapping[str, Mapping[str, object]]


def litellm_facts(litellm: Rows, prefix: str) -> FactsOf:
    """What litellm's file says; its names begin with a provider's `prefix`."""

    def find(names: Iterable[str]) -> Facts:
        row = next((litellm[prefix + name] for name in names if prefix + name in litellm), {})
        return Facts(
            whole(row.get("max_input_tokens")),
            whole(row.get("max_output_tokens")),
            capabilities(row),
        )

    return find


QWEN_PRESET = "qwen"
QWEN_SOURCE = "https://www.alibabacloud.com/help/en/model-studio/model-pricing"
QWEN = re.compile(r"dashscope/(qw(en|q)[\w.-]*)$")
MODE_PRICED = {"qwen-plus", "qwen-turbo"}  # names of versions whose answers cost more when thinking
QWEN_KEYS: Mapping[str, str] = {
    "input_cost_per_token": "input",
    "cache_read_input_token_cost": "cached_input",
    "cache_creation_input_token_cost": "cache_write",
    "output_cost_per_token": "output",
}
MILLION = 1_000_000


def qwen_models(litellm: Rows) -> Iterator[KnownModel]:
    """Alibaba's own models. Those whose *answer* costs more when they think are left out: what an
    answer costs cannot then be told from its token counts.
    """
    for name, row in litellm.items():
        match = QWEN.match(name)
        if match is None or OTHER_KINDS.search(name):
            continue
        steps = row.get("tiered_pricing") or [row]
        assert isinstance(steps, list)
        thinks = any("output_cost_per_reasoning_token" in step for step in steps)
        if thinks or match[1] in MODE_PRICED:
            say(f"  left out qwen/{match[1]}: its answers cost more when it thinks")
            continue
        if "input_cost_per_token" not in steps[0] or "output_cost_per_token" not in steps[0]:
            continue
        rates = [
            {
                unit: dollars(Decimal(step[key]) * MILLION)
                for key, unit in QWEN_KEYS.items()
                if key in step
            }
            for step in steps
        ]
        yield KnownModel(
            id=match[1],
            context_window=whole(row.get("max_input_tokens")),
            max_output_tokens=whole(row.get("max_output_tokens")),
            capabilities=capabilities(row),
            price=PriceSettings(
                **rates[0],
                above=tuple(
                    RatesAbove(input_tokens=int(step["range"][0]), **rate)
                    for step, rate in zip(steps[1:], rates[1:], strict=True)
                ),
                service_tier={},
            ),
        )


def capabilities(row: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(word for key, word in CAPABILITIES.items() if row.get(key) is True)


def whole(value: object) -> int:
    return int(value) if isinstance(value, int | Decimal) else 0


# -- decimals -------------------------------------------------------------------------------------


def dollars(value: Decimal) -> str:
    """A decimal string with at least two places and at most six."""
    near = value.quantize(SIX_PLACES)
    is_noise = abs(value - near) < NOISE
    text = plain(near if is_noise else value.quantize(SIX_PLACES, ROUND_UP))
    whole_part, _, fraction = text.partition(".")
    return f"{whole_part}.{fraction:0<2}"


def plain(value: Decimal) -> str:
    """Without trailing zeros and without an exponent."""
    return f"{value.normalize():f}"


if __name__ == "__main__":
    main()
