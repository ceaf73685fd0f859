"""From settings to the catalogue that is served: models, their upstreams, their prices.

A model's price is its own `[models.price]`; at an upstream, `upstream_price` where there is one,
else the model's, else the packaged list's entry for that provider's preset. Without any of them it
is unpriced: never served, unless `billing.allow_unpriced` sells it for nothing. Where no model is
configured, all known models of the configured presets are served under their own ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec

from adapters import sandbox
from adapters.catalogue import Catalogue, Kind, Model, PriceSchedule, Provider, Upstream
from adapters.codec import family
from adapters.pricing import build_schedule
from adapters.settings import ModelSettings, PriceSettings, ProviderSettings, UpstreamRef
from farebox import demo
from farebox.config import Config, ConfigError, groups
from farebox.decode import nearest
from farebox.presets import PRESETS
from farebox.prices import KnownModel, known_models

_REASONING_OUTPUT_TOKENS = 32_768
_BUILT_IN_PRICE: Mapping[str, object] = {
    "input": "0.15",
    "cached_input": "0.075",
    "output": "0.60",
}
_FREE: Mapping[str, object] = {"input": "0", "output": "0"}
_OPENAI_PRESETS = ("openai", "azure")
_OPENAI_HOST = "api.openai.com"


@dataclass(frozen=True, slots=True)
class BuiltIn:
    """A provider that the gateway runs itself, and the kinds of its models by id."""

    name: str
    base_url: str
    models: Mapping[str, Kind]


def sandbox_provider(base_url: str) -> BuiltIn:
    """The scripted provider that serves where none is configured."""
    kinds = {name: model.kind for name, model in sandbox.MODELS.items()}
    return BuiltIn("sandbox", base_url, kinds)


def demo_provider(base_url: str) -> BuiltIn:
    """The small real model of `make demo`."""
    return BuiltIn("demo", base_url, {demo.MODEL: "chat"})


def catalogue(config: Config, built_in: BuiltIn | None = None) -> Catalogue:
    """What `config` serves. `built_in` is used where no provider is configured.

    Raises ConfigError for a price that is not exact.
    """
    if config.sandbox:
        built_in = built_in or sandbox_provider("http://127.0.0.1")
        provider = Provider(built_in.name, "openai", built_in.base_url, api_keys=(built_in.name,))
        models = [_built_in_model(provider, *entry) for entry in built_in.models.items()]
        return Catalogue.build(models, [provider], _example(config, models))
    providers = {settings.name or "": settings for settings in config.providers}
    served = {name: provider_of(settings) for name, settings in providers.items()}
    composer = _Composer(config, providers, served)
    models = [
        model
        for settings in config.models or composer.known()
        if (model := composer.model(settings)) is not None
    ]
    if composer.problems:
        raise ConfigError(composer.problems)
    return Catalogue.build(models, list(served.values()), _example(config, models))


def _example(config: Config, models: Sequence[Model]) -> str:
    """The model of a first call: the first that was configured and has a price, else the example of
    the first preset that has one."""
    chat = [model for model in models if model.kind == "chat" and priced(model)]
    if not config.models:
        examples = [
            PRESETS[settings.preset].example for settings in config.providers if settings.preset
        ]
        known = {model.id for model in chat}
        chosen = next((name for name in examples if name in known), "")
        if chosen:
            return chosen
    return chat[0].id if chat else ""


def remarks(config: Config, served: Catalogue) -> list[str]:
    """What an operator should know of the models, one sentence each."""
    settings = {model.id: model for model in config.models}
    found = [
        sentence
        for model in served.models.values()
        if not priced(model)
        for sentence in _why_unpriced(settings[model.id])
    ]
    reference = config.routing.default_reference
    if reference and reference not in served.models:
        found.append(
            f'routing.default_reference: there is no model "{reference}"'
            f"{nearest(reference, served.models)}"
        )
    presets = {settings.name: settings.preset or "" for settings in config.providers}
    found += [
        f'models["{model.id}"].upstreams: {" and ".join(different)} make vectors that cannot be '
        "compared; give each model an id of its own"
        for model in served.models.values()
        if model.kind == "embedding" and len(different := _different(model, presets)) > 1
    ]
    return found


def _why_unpriced(model: ModelSettings) -> Iterator[str]:
    """What the prices of a model that is left out lack, one sentence each."""
    needed = ("input", "output") if model.kind == "chat" else ("input",)
    written = {"price": model.price} if model.price else {}
    written |= {f'upstream_price."{name}"': each for name, each in model.upstream_price.items()}
    if not written:
        yield f'models["{model.id}"] has no price and is left out; add [models.price]'
    for where, price in written.items():
        if lacking := [unit for unit in needed if getattr(price, unit) is None]:
            yield (
                f'models["{model.id}"].{where} has no {" and no ".join(lacking)}, so the model is '
                "left out; write what a million tokens cost"
            )


def _different(model: Model, presets: Mapping[str | None, str]) -> list[str]:
    """One upstream for each of the models behind `model`, as far as the price list knows them."""
    found: dict[str, str] = {}
    for upstream in model.upstreams:
        known = known_models(presets.get(upstream.provider.name, "")).get(upstream.model)
        if known is not None:
            found.setdefault(family(known.id), f'"{upstream.name}"')
    return list(found.values())


def priced(model: Model) -> bool:
    """Whether the model can be sold at one of its upstreams at least."""
    return any(upstream.prices is not None for upstream in model.upstreams)


def known_somewhere(name: str) -> bool:
    """Whether a preset's price list has this model: one that is served where its key is set."""
    provider, _, model = name.partition("/")
    if provider in PRESETS and model in known_models(provider):
        return True
    return any(name in known_models(preset) for preset in PRESETS)


def provider_of(settings: ProviderSettings) -> Provider:
    """A completed provider, as the data plane uses it."""
    assert settings.name is not None, "completed by farebox.config"
    assert settings.base_url is not None, "completed by farebox.config"
    assert settings.protocol is not None, "completed by farebox.config"
    assert settings.auth is not None, "completed by farebox.config"
    keys = settings.api_key or ()
    host = urlsplit(settings.base_url).hostname
    openai = settings.preset in _OPENAI_PRESETS or host == _OPENAI_HOST
    return Provider(
        name=settings.name,
        protocol=settings.protocol,
        base_url=settings.base_url,
        api_keys=(keys,) if isinstance(keys, str) else keys,
        auth=settings.auth,
        headers=tuple((name.lower(), value) for name, value in settings.headers.items()),
        query=tuple(settings.query.items()),
        connect_seconds=settings.connect_seconds,
        first_byte_seconds=settings.first_byte_seconds,
        idle_seconds=settings.idle_seconds,
        max_connections=settings.max_connections,
        failures_to_open=settings.failures_to_open,
        open_seconds=settings.open_seconds,
        output_cap_field="max_completion_tokens" if openai else "max_tokens",
        responses=openai and settings.protocol == "openai",
    )


class _Composer:
    """Joins models with providers and prices; problems gather as sentences."""

    def __init__(
        self,
        config: Config,
        settings: Mapping[str, ProviderSettings],
        served: Mapping[str, Provider],
    ) -> None:
        self.problems: list[str] = []
        self._billing = config.billing
        self._settings = settings
        self._served = served

    def known(self) -> Iterator[ModelSettings]:
        """The known models of every served preset; of one id, the first provider's."""
        seen: set[str] = set()
        for name in self._served:
            for known in known_models(self._settings[name].preset or "").values():
                if known.id not in seen and not known.deprecated:
                    seen.add(known.id)  # also keeps its aliases from listing it again
                    yield _as_settings(known, name)

    def model(self, settings: ModelSettings) -> Model | None:
        """One model with the upstreams that can be served, or None where there are none."""
        found = tuple(
            tuple(self._upstream(settings, ref) for ref in group if ref.provider in self._served)
            for group in groups(settings)
        )
        upstreams = tuple(group for group in found if group)
        if not upstreams:
            return None
        self._check_kinds(settings)
        known = self._known(next(ref for group in groups(settings) for ref in group))
        facts = settings if known is None else _completed(settings, known)
        listed = [upstream for group in upstreams for upstream in group]
        return Model(
            id=facts.id,
            groups=upstreams,
            owned_by=facts.owned_by or upstreams[0][0].provider.name,
            kind=facts.kind,
            context_window=facts.context_window,
            max_output_tokens=facts.max_output_tokens,
            default_max_output_tokens=self._default_cap(facts),
            hedge_after_percentile=facts.hedge_after_percentile,
            rpm=facts.rpm,
            tpm=facts.tpm,
            capabilities=facts.capabilities,
            prices=next((each.prices for each in listed if each.prices is not None), None),
        )

    def _check_kinds(self, model: ModelSettings) -> None:
        """Every upstream has to be of the model's kind, as far as the price list knows it."""
        for group in groups(model):
            for ref in group:
                known = self._known(ref)
                if known is not None and known.kind != model.kind:
                    self.problems.append(
                        f'models["{model.id}"].upstreams: "{ref.name}" is for {known.kind}, not '
                        f'for {model.kind}; set kind = "{known.kind}", or leave it out'
                    )

    def _default_cap(self, model: ModelSettings) -> int:
        """What is held and sent where the client sets no cap (contract §2)."""
        default = self._billing.default_max_output_tokens
        if "reasoning" in model.capabilities:
            default = max(default, _REASONING_OUTPUT_TOKENS)
        cap = model.default_max_output_tokens or default
        # Where only the window is known, a cap that leaves no room for input would be refused.
        limit = model.max_output_tokens or model.context_window // 2
        return min(cap, limit) if limit else cap

    def _upstream(self, model: ModelSettings, ref: UpstreamRef) -> Upstream:
        return Upstream(self._served[ref.provider], ref.model, self._prices(model, ref), ref.weight)

    def _prices(self, model: ModelSettings, ref: UpstreamRef) -> PriceSchedule | None:
        price = model.upstream_price.get(ref.name) or model.price
        known = self._known(ref)
        if price is None and known is not None:
            price = known.price
        schedule = None
        if price is not None:
            try:
                schedule = build_schedule(_as_table(price), model.kind)
            except ValueError as error:
                self.problems.append(f'models["{model.id}"].price: {error}')
        if schedule is None and self._billing.allow_unpriced:
            return build_schedule(_FREE)
        return schedule

    def _known(self, ref: UpstreamRef) -> KnownModel | None:
        preset = self._settings[ref.provider].preset if ref.provider in self._settings else None
        return known_models(preset or "").get(ref.model)


def _built_in_model(provider: Provider, model_id: str, kind: Kind) -> Model:
    prices = build_schedule(_BUILT_IN_PRICE, kind)
    return Model(
        id=model_id,
        groups=((Upstream(provider, model_id, prices),),),
        owned_by=provider.name,
        kind=kind,
        context_window=demo.CONTEXT_TOKENS if provider.name == "demo" else 128_000,
        max_output_tokens=2048,
        default_max_output_tokens=1024,
        prices=prices,
    )


def _as_settings(known: KnownModel, provider: str) -> ModelSettings:
    return ModelSettings(id=known.id, kind=known.kind, upstreams=(f"{provider}/{known.id}",))


def _completed(settings: ModelSettings, known: KnownModel) -> ModelSettings:
    """`settings` with what the price list knows filled in where they say nothing."""
    return msgspec.structs.replace(
        settings,
        context_window=settings.context_window or known.context_window,
        max_output_tokens=settings.max_output_tokens or known.max_output_tokens,
        capabilities=settings.capabilities or known.capabilities,
    )


def _as_table(price: PriceSettings) -> Mapping[str, object]:
    """A price as the table it was read from: what is absent stays absent."""
    table = msgspec.to_builtins(price)  # the structs leave defaults out
    assert isinstance(table, dict)
    return table
