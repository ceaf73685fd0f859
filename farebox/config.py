"""`farebox.toml` to settings: decoded strictly, secrets resolved, checked across tables.

`load` either returns a `Config` that can be served or raises `ConfigError` with every problem,
one plain sentence each. What is legal but without effect in this version is in
`Config.warnings`, never silently ignored. Nothing else in the product reads the environment.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from adapters import embedders
from adapters.catalogue import Protocol
from adapters.settings import (
    HEDGE_PERCENTILE_MIN,
    ModelSettings,
    ProviderSettings,
    UpstreamRef,
    parse_upstream,
)
from console.links import is_loopback
from console.settings import ConsoleSettings, StripeSettings
from evals.settings import RoutingSettings
from farebox.decode import Problems, homes, map_strings, nearest, table
from farebox.presets import AUTH_BY_PROTOCOL, PRESETS
from ledger.connection import understood
from ledger.draws import LIMIT_MAX
from ledger.settings import DatabaseSettings
from ledger.valkey import client_missing, parse_url
from proxy.forwarded import parse_network
from proxy.memory import BODIES_MIN
from proxy.settings import (
    BASIS_POINTS,
    BillingSettings,
    LimitsSettings,
    ServerSettings,
    TierSettings,
    parse_address,
)

DEFAULT_FILE = "farebox.toml"
SECRET_BYTES_MIN = 32
MARGIN_MAX = 10
WORKERS_MAX = 256

_PROVIDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # a slash would split upstream names

# What every path of a protocol begins with: a base URL that has it too leads nowhere.
_VERSIONS: Mapping[Protocol, str] = {"anthropic": "/v1", "gemini": "/v1beta"}

_DEFAULTS = ProviderSettings()

# Read where they are needed, not here: the file may not exist yet.
_UNRESOLVED = frozenset({"server.secret"})


# What others call a part of a setting, by the path where it is looked for.
_LISTEN = '; it is a part of server.listen, such as "127.0.0.1:8080"'
_URL = '; it is a part of database.url: "postgresql://user:password@host:5432/database"'
_MEANT: Mapping[str, str] = {
    **dict.fromkeys(("host", "port", "server.host", "server.port"), _LISTEN),
    **{f"database.{part}": _URL for part in ("host", "port", "user", "password", "name")},
}


class ConfigError(Exception):
    """The configuration cannot be served; `problems` has one sentence each."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True, slots=True)
class Config:
    """Everything an operator decided, with defaults filled in.

    Relative paths start at `root`, the folder of the configuration file. Each of `providers` is
    complete (name, protocol, base URL, auth), and `models` is empty where the price list's known
    models are to be served. `from_environment`: the providers are those that this process has keys
    of in its environment, where another may have others.
    """

    root: Path
    server: ServerSettings
    database: DatabaseSettings
    limits: LimitsSettings
    billing: BillingSettings
    tiers: Mapping[str, TierSettings]
    providers: tuple[ProviderSettings, ...]
    models: tuple[ModelSettings, ...]
    routing: RoutingSettings
    console: ConsoleSettings
    stripe: StripeSettings
    warnings: tuple[str, ...] = ()
    from_environment: bool = False

    @property
    def data_dir(self) -> Path:
        """Where the embedded database, the journal and the secret are kept, absolute."""
        return self.root / self.database.data_dir

    @property
    def sandbox(self) -> bool:
        """Whether the sandbox provider serves: no provider that can is configured."""
        return not self.providers


class _File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file, as its tables are named."""

    server: ServerSettings = ServerSettings()
    database: DatabaseSettings = DatabaseSettings()
    limits: LimitsSettings = LimitsSettings()
    billing: BillingSettings = BillingSettings()
    tiers: dict[str, TierSettings] = {}
    providers: tuple[ProviderSettings, ...] = ()
    models: tuple[ModelSettings, ...] = ()
    routing: RoutingSettings = RoutingSettings()
    console: ConsoleSettings = ConsoleSettings()
    stripe: StripeSettings = StripeSettings()


def load(path: Path | None, environ: Mapping[str, str]) -> Config:
    """Read `path`, or `farebox.toml` here if there is one, or take the defaults.

    Raises ConfigError with every problem found.
    """
    if path is None and (here := Path(DEFAULT_FILE)).is_file():
        path = here
    root = (path.parent if path else Path()).resolve()
    problems = Problems(homes(_File), _MEANT)
    raw = map_strings(
        _read(path) if path else {},
        "",
        lambda text, at: _resolve(text, at, root, environ, problems),
        spare=_UNRESOLVED,
    )
    file = table(_File, raw, "", problems)
    assert file is not None, "every table has a default"
    assert isinstance(raw, dict)
    _check_server(file.server, problems)
    _check_database(file.database, problems)
    _check_billing(file, problems)
    _check_fleet(file, problems)
    _check_console(file.console, problems)
    _check_stripe(file.stripe, problems)
    providers = _providers(file, environ, problems)
    _check_models(file, providers, problems)
    if problems:
        raise ConfigError(problems)
    return Config(
        root,
        file.server,
        file.database,
        file.limits,
        file.billing,
        file.tiers,
        providers,
        file.models,
        file.routing,
        file.console,
        file.stripe,
        (
            *_not_yet(file, providers, raw),
            *_idle_weights(file.models),
            *_idle_patience(providers, file.server.max_request_seconds),
        ),
        from_environment=not file.providers,
    )


def restart_needed(running: Config, wanted: Config) -> tuple[str, ...]:
    """The settings of `wanted` that a reload of `running` cannot take over, by their names."""
    changed = {
        "server.listen": running.server.listen != wanted.server.listen,
        "server.admin_listen": running.server.admin_listen != wanted.server.admin_listen,
        "server.max_request_seconds": _request_seconds(running) != _request_seconds(wanted),
        "server.workers": running.server.workers != wanted.server.workers,
        "server.secret": running.server.secret != wanted.server.secret,
        "database.url": running.database.url != wanted.database.url,
        "database.data_dir": running.data_dir != wanted.data_dir,
        "limits.valkey_url": running.limits.valkey_url != wanted.limits.valkey_url,
        "console.enabled": running.console.enabled != wanted.console.enabled,
    }
    return tuple(name for name, differs in changed.items() if differs)


def kept(running: Config, wanted: Config) -> Config:
    """`wanted`, but requests last no longer than the ledger was told when it started.

    It is known to the database how long a gateway that fell silent may still use what it holds.
    """
    seconds = _request_seconds(running)
    return replace(
        wanted, server=msgspec.structs.replace(wanted.server, max_request_seconds=seconds)
    )


def _request_seconds(config: Config) -> float:
    return config.server.max_request_seconds


def resolve(text: str, root: Path, environ: Mapping[str, str]) -> str:
    """The value behind `env:NAME` or `file:PATH`; other text is itself.

    Raises ValueError with a sentence fragment where there is no such variable or file.
    """
    kind, colon, name = text.partition(":")
    if not colon or kind not in ("env", "file"):
        return text
    if kind == "env":
        if not (value := environ.get(name, "")):
            raise ValueError(f"the environment variable {name} is not set; set it or remove this")
        return value
    try:
        return (root / name).read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ValueError(f"cannot read the file {name}: {why}") from None


def _read(path: Path) -> object:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from None
    except UnicodeDecodeError:
        raise ConfigError([f"{path}: is not UTF-8 text"]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{path}: is not valid TOML: {error}"]) from None


def _resolve(text: str, at: str, root: Path, environ: Mapping[str, str], problems: Problems) -> str:
    try:
        found = resolve(text, root, environ)
    except ValueError as error:
        problems.add(at, str(error))
        return ""
    if found != text:
        problems.unspeakable.add(found)
    return found


# -- one table ------------------------------------------------------------------------------------


def _check_server(server: ServerSettings, problems: Problems) -> None:
    addresses = []
    for key in ("listen", "admin_listen"):
        try:
            addresses.append(parse_address(getattr(server, key)))
        except ValueError as error:
            problems.add(f"server.{key}", str(error))
    if len(addresses) == 2 and addresses[0] == addresses[1] and addresses[0][1] != 0:
        problems.add("server.admin_listen", "is the same address as server.listen; choose another")
    if server.public_url:
        _check_url("server.public_url", server.public_url, problems)
    if server.workers > WORKERS_MAX:
        problems.add(
            "server.workers", f"is at most {WORKERS_MAX}; 0 means as many as there are CPUs"
        )
    for index, proxy in enumerate(server.trusted_proxies):
        try:
            parse_network(proxy)
        except ValueError as error:
            problems.add(f"server.trusted_proxies[{index}]", str(error))
    least = BODIES_MIN * server.max_body_bytes
    if 0 < server.max_held_bytes < least:
        problems.add(
            "server.max_held_bytes",
            f"is at least {least}, {BODIES_MIN} times max_body_bytes; "
            "0 goes by the memory there is",
        )


def _check_database(database: DatabaseSettings, problems: Problems) -> None:
    if database.url and not understood(database.url):
        problems.add(
            "database.url",
            "is not what Postgres takes; write it as "
            '"postgresql://user:password@host:5432/database"',
        )
    if not database.data_dir:
        problems.add("database.data_dir", 'names no folder; write one, such as ".farebox"')


def _check_billing(file: _File, problems: Problems) -> None:
    try:
        margin_bps = file.billing.margin_bps
    except ValueError:
        problems.add("billing.margin", "has steps of a basis point: at most four decimals")
    else:
        if margin_bps > MARGIN_MAX * BASIS_POINTS:
            problems.add("billing.margin", f"is from 0 to {MARGIN_MAX}: a fraction of the cost")
    tier = file.limits.default_tier
    if tier and tier not in file.tiers:
        problems.add(
            "limits.default_tier",
            f'there is no tier "{tier}"{nearest(tier, file.tiers) or "; add [tiers." + tier + "]"}',
        )


def _check_fleet(file: _File, problems: Problems) -> None:
    """What `limits.valkey_url` needs: a URL, the client library, limits that Valkey can count."""
    if not file.limits.valkey_url:
        return
    try:
        parse_url(file.limits.valkey_url)
    except ValueError as error:
        problems.add("limits.valkey_url", str(error))
    if (why := client_missing()) is not None:
        problems.add("limits.valkey_url", why)
    for name, tier in file.tiers.items():
        for kind in ("rpm", "tpm"):
            if getattr(tier, kind) > LIMIT_MAX:
                problems.add(
                    f"tiers.{name}.{kind}",
                    f"is at most {LIMIT_MAX:,} where nodes share limits (limits.valkey_url)",
                )


def _check_console(console: ConsoleSettings, problems: Problems) -> None:
    if console.jwt_secret and len(console.jwt_secret.encode()) < SECRET_BYTES_MIN:
        problems.add(
            "console.jwt_secret", f"is too short for HS256: at least {SECRET_BYTES_MIN} bytes"
        )
    if console.jwks_url:
        _check_guarded_url(
            "console.jwks_url",
            console.jwks_url,
            "whoever is on the way could put keys of their own there",
            problems,
        )
    if console.jwt_secret or console.jwks_url:
        if not console.issuer:
            problems.add("console.issuer", "missing; write what tokens have as iss")
        if not console.audience:
            problems.add("console.audience", "is empty; write what tokens have as aud")
    if console.login_url:
        _check_guarded_url(
            "console.login_url",
            console.login_url,
            "whoever is on the way could have people sign in at theirs",
            problems,
        )
        if not console.jwt_secret and not console.jwks_url:
            problems.add(
                "console.login_url", "nobody's tokens count here; set jwks_url or jwt_secret"
            )


def _check_stripe(stripe: StripeSettings, problems: Problems) -> None:
    if stripe.api_key and not stripe.webhook_secret:
        problems.add(
            "stripe.webhook_secret",
            "missing; without it anybody could say that they have paid. Write the signing secret of"
            " Stripe's endpoint, which starts with whsec_",
        )
    if stripe.webhook_secret and not stripe.api_key:
        problems.add("stripe.api_key", "missing; write Stripe's secret key, or remove [stripe]")
    _check_guarded_url(
        "stripe.api_base",
        stripe.api_base,
        "the key would travel for everybody to read",
        problems,
    )


def _check_guarded_url(path: str, url: str, danger: str, problems: Problems) -> None:
    """As `_check_url`, where what is said there must not be read or changed on the way."""
    _check_url(path, url, problems)
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "http" and host != "localhost" and not is_loopback(host):
        problems.add(path, f'{danger}; write a URL that starts with "https://"')


def _check_url(path: str, url: str, problems: Problems) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        problems.add(path, 'expected a URL that starts with "http://" or "https://"')


# -- providers ------------------------------------------------------------------------------------


def _providers(
    file: _File, environ: Mapping[str, str], problems: Problems
) -> tuple[ProviderSettings, ...]:
    """All providers, completed: those of the file, else those whose variable is set."""
    listed = file.providers or tuple(
        ProviderSettings(preset=name)
        for name, preset in PRESETS.items()
        if preset.base_url and environ.get(preset.env)
    )
    complete = tuple(
        _complete(provider, f"providers[{_called(provider, index)}]", environ, problems)
        for index, provider in enumerate(listed)
    )
    for name, count in Counter(provider.name for provider in complete).items():
        if count > 1:
            problems.add(
                f'providers["{name}"].name', f"{count} providers have this name; rename one"
            )
    return complete


def _called(provider: ProviderSettings, index: int) -> str:
    name = provider.name or provider.preset
    return f'"{name}"' if name else str(index)


def _complete(
    provider: ProviderSettings, path: str, environ: Mapping[str, str], problems: Problems
) -> ProviderSettings:
    """`provider` with what its preset and protocol know filled in."""
    preset = PRESETS.get(provider.preset or "")
    if provider.preset is not None and preset is None:
        problems.add(
            f"{path}.preset",
            f'there is no preset "{provider.preset}"'
            + (nearest(provider.preset, PRESETS) or f"; one of {', '.join(PRESETS)}"),
        )
        return provider
    name = provider.name or provider.preset
    if name is None:
        problems.add(f"{path}.name", "missing; a provider has a name or a preset")
    elif not _PROVIDER_NAME.fullmatch(name):
        problems.add(f"{path}.name", "expected letters, digits, dots, dashes and underscores")
    base_url = provider.base_url or (preset.base_url if preset else "")
    protocol = provider.protocol or (preset.protocol if preset else "openai")
    if base_url:
        _check_url(f"{path}.base_url", base_url, problems)
        version = _VERSIONS.get(protocol, "")
        if version and base_url.rstrip("/").endswith(version):
            problems.add(
                f"{path}.base_url", f"leave {version} out; the protocol {protocol} adds it"
            )
    else:
        hint = f", such as {preset.base_url_hint}" if preset and preset.base_url_hint else ""
        problems.add(f"{path}.base_url", f"missing; write the provider's address{hint}")
    auth = provider.auth
    if auth is None:
        same = preset is not None and preset.protocol == protocol
        auth = preset.auth if preset and same else AUTH_BY_PROTOCOL[protocol]
    api_key = provider.api_key
    if api_key is None and preset is not None:
        api_key = environ.get(preset.env, "")
        if not api_key and preset.key_required:
            problems.add(
                f"{path}.api_key",
                f"missing; set the environment variable {preset.env} or write api_key",
            )
    return msgspec.structs.replace(
        provider,
        name=name,
        protocol=protocol,
        base_url=base_url.rstrip("/"),
        auth=auth,
        api_key=tuple(key for key in _several(api_key) if key),
    )


def _several(api_key: str | tuple[str, ...] | None) -> tuple[str, ...]:
    if api_key is None:
        return ()
    return (api_key,) if isinstance(api_key, str) else api_key


# -- models ---------------------------------------------------------------------------------------


def groups(model: ModelSettings) -> tuple[tuple[UpstreamRef, ...], ...]:
    """The upstreams of `model` in priority order, equals in one group.

    Raises ValueError where one is not `provider/model`; `load` has refused those.
    """
    return tuple(
        tuple(parse_upstream(text) for text in ((entry,) if isinstance(entry, str) else entry))
        for entry in model.upstreams
    )


def _check_models(file: _File, providers: tuple[ProviderSettings, ...], problems: Problems) -> None:
    protocols = {
        provider.name: provider.protocol or "openai" for provider in providers if provider.name
    }
    for model_id, count in Counter(model.id for model in file.models).items():
        if count > 1:
            problems.add(f'models["{model_id}"].id', f"{count} models have this id; keep one")
    for model in file.models:
        _check_model(model, protocols, problems)


def _check_model(
    model: ModelSettings, protocols: Mapping[str, Protocol], problems: Problems
) -> None:
    path = f'models["{model.id}"]'
    try:
        upstreams = [upstream for group in groups(model) for upstream in group]
    except ValueError as error:
        problems.add(f"{path}.upstreams", str(error))
        return
    if not upstreams or () in model.upstreams:
        problems.add(f"{path}.upstreams", 'name at least one, such as "openai/gpt-4o"')
    if 0 < model.hedge_after_percentile < HEDGE_PERCENTILE_MIN:
        problems.add(
            f"{path}.hedge_after_percentile",
            f"asks most requests twice; write {HEDGE_PERCENTILE_MIN} to 99, such as 95, or 0",
        )
    for upstream in upstreams:
        protocol = protocols.get(upstream.provider)
        if protocol is None:
            problems.add(
                f"{path}.upstreams",
                f'there is no provider "{upstream.provider}"' + _provider_hint(upstream, protocols),
            )
        elif model.kind == "embedding" and not embedders.embeds(protocol):
            problems.add(
                f"{path}.upstreams",
                f'the provider "{upstream.provider}" speaks {protocol}, which has no embeddings',
            )
    listed = Counter(upstream.name for upstream in upstreams)
    for name, count in listed.items():
        if count > 1:
            problems.add(f"{path}.upstreams", f'"{name}" is listed {count} times; keep one')
    for name in model.upstream_price:
        if name not in listed:
            problems.add(
                f'{path}.upstream_price."{name}"',
                f"is not one of the model's upstreams{nearest(name, listed)}",
            )
    if model.max_output_tokens and model.default_max_output_tokens > model.max_output_tokens:
        problems.add(f"{path}.default_max_output_tokens", "is more than max_output_tokens")


def _idle_weights(models: Iterable[ModelSettings]) -> Iterable[str]:
    """A sentence for each weight that has nothing to be weighed against."""
    for model in models:
        for group in groups(model):
            if len(group) == 1 and group[0].weight != 1:
                yield (
                    f'models["{model.id}"].upstreams: the weight of "{group[0].name}" has no '
                    "effect; weights count among equals, which stand in a list of their own"
                )


def _idle_patience(providers: Iterable[ProviderSettings], request_seconds: float) -> Iterable[str]:
    """A sentence for each wait that somebody wrote, and that no request lives to see the end of."""
    for provider in providers:
        for key in ("connect_seconds", "first_byte_seconds", "idle_seconds"):
            seconds = getattr(provider, key)
            if seconds > request_seconds and seconds != getattr(_DEFAULTS, key):
                yield (
                    f'providers["{provider.name}"].{key}: {seconds:g} has no effect; every request '
                    f"ends after the {request_seconds:g} seconds of server.max_request_seconds"
                )


def _provider_hint(upstream: UpstreamRef, names: Iterable[str]) -> str:
    if upstream.provider in PRESETS:
        preset = PRESETS[upstream.provider]
        variable = f"set {preset.env} or " if preset.env and preset.base_url else ""
        return f'; {variable}add [[providers]] with preset = "{upstream.provider}"'
    return nearest(upstream.provider, names) or "; add it to [[providers]]"


# -- what this version does not do ----------------------------------------------------------------


def _not_yet(
    file: _File, providers: tuple[ProviderSettings, ...], raw: Mapping[str, object]
) -> Iterable[str]:
    """A sentence for each setting that is understood but has no effect in this version."""
    later: dict[str, bool] = {}
    routing = raw.get("routing")
    if isinstance(routing, dict):
        later |= {f"routing.{key}": key != "default_reference" for key in routing}
    for model in file.models:
        path = f'models["{model.id}"]'
        later[f"{path}.latency_class"] = bool(model.latency_class)
    for provider in providers:
        path = f'providers["{provider.name}"]'
        later[f"{path}.shadow_api_key"] = bool(provider.shadow_api_key)
    return (f"not in this version yet: {what}" for what, used in later.items() if used)
