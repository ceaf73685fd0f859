"""A gateway as a reseller runs it, for tests in a browser: known models, plans, payments by card.

Its providers are the sandbox, its Stripe the stand-in, its database its own. Models have the names
and prices of the price lists. `serving` is such a gateway for the time of a block; with `people`
its users have tokens of the fake issuer, and otherwise a link signs in the operator.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import openai

from console.links import sign_in_link
from ledger.directory import Directory
from ledger.money import parse_usd
from tests.fakes import stripe, waiting
from tests.fakes.issuer import AUDIENCE, ISSUER, SECRET, by_secret
from tests.fakes.process import WITH_CONSOLE, GatewayProcess, sandbox_process, wait_until_effective

eventually = partial(waiting.eventually, seconds=60, pause_seconds=0.1)
"""Patient, and without haste: what is waited for is a page as a rule."""

MODELS: Mapping[str, tuple[str, ...]] = {
    "openai": ("gpt-5.4", "gpt-5.4-mini", "text-embedding-3-small"),
    "anthropic": ("claude-opus-4-8", "claude-sonnet-5"),
    "gemini": ("gemini-3.5-flash",),
}
SHAKY = "claude-sonnet-5"
"""The model whose first upstream always fails."""

_PROTOCOLS = {"openai": ("openai", "/v1"), "anthropic": ("anthropic", ""), "gemini": ("gemini", "")}
_PRICES = Path(__file__).parents[2] / "farebox" / "prices"
_PLANS = """
[tiers.free]
rpm = 20
tpm = 200000
concurrent = 2

[tiers.pro]
rpm = 600
tpm = 2000000
concurrent = 20

[tiers.enterprise]
"""
_PEOPLE = f"""
[console]
jwt_secret = "{SECRET}"
issuer = "{ISSUER}"
audience = "{AUDIENCE}"
"""


class Shop:
    """The gateway, and whoever it deals with."""

    def __init__(self, gateway: GatewayProcess, payments: stripe.Stripe) -> None:
        self.gateway = gateway
        self.stripe = payments
        self.url = gateway.base_url

    @property
    def conninfo(self) -> str:
        """Of its database."""
        return self.gateway.conninfo

    def printed_link(self) -> str:
        """The sign-in link that it printed when it started."""
        found = re.search(r"(http\S+/console/sign-in/\S+)", "".join(self.gateway.output))
        assert found, self.gateway.tail()
        return found[1]

    def new_link(self) -> str:
        """Another sign-in link for the operator."""
        return sign_in_link(self.conninfo, self.url, datetime.now(UTC))

    def account(self, name: str, credit: str = "25.00", tier: str = "") -> None:
        """A new account with one project, `web`."""
        with Directory(self.conninfo) as directory:
            directory.create_account(name, tier=tier, credit=parse_usd(credit))
            directory.create_project(name, "web")

    def client(self, key: str) -> openai.OpenAI:
        """OpenAI's SDK as it comes: it tries again where a busy machine's ledger is late."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key)


def token(name: str, seconds: int = 3600) -> str:
    """An access token about somebody, good for an hour."""
    now = int(time.time_ns() / 1e9)
    return by_secret(
        SECRET,
        None,
        sub=name,
        email=f"{name}@example.test",
        exp=now + seconds,
        iat=now - 10,
        user_metadata=None,
    )


@contextmanager
def serving(
    directory: Path, *, people: bool = False, login_url: str = "", behind_proxy: bool = False
) -> Iterator[Shop]:
    """A shop for the time of the block; it has to end by itself when told to.

    One that is `behind_proxy` believes this machine's `x-forwarded-for`.
    """
    with ExitStack() as stack:
        origin = stack.enter_context(sandbox_process())
        payments = stack.enter_context(stripe.serving())
        payments.page_origin = CHECKOUT
        config = configuration(origin, payments.base_url) + (_PEOPLE if people else "")
        if login_url:
            config += f'login_url = "{login_url}"\n'
        if behind_proxy:
            config = config.replace("[server]\n", '[server]\ntrusted_proxies = ["127.0.0.1"]\n')
        gateway = GatewayProcess(directory, config)
        stack.callback(gateway.kill)
        gateway.start()
        payments.deliver_to(f"{gateway.base_url}/console/api/stripe/webhook")
        shop = Shop(gateway, payments)
        eventually(gateway.has_console, "a console, which loads once the gateway serves")
        yield shop
        assert gateway.stop() == 0, gateway.tail()


CHECKOUT = "https://checkout.stripe.com"
"""Where the content security policy lets a form lead: browsers of tests find the stand-in there."""


def configuration(origin: str, api_base: str) -> str:
    """`farebox.toml` of a shop whose providers are at `origin`."""
    payments = f"""
[stripe]
api_key = "{stripe.API_KEY}"
webhook_secret = "{stripe.WEBHOOK_SECRET}"
api_base = "{api_base}"
"""
    providers = [_provider(name, origin) for name in MODELS]
    models = [_model(provider, name) for provider, names in MODELS.items() for name in names]
    return WITH_CONSOLE + _PLANS + payments + "".join(providers + models)


def _provider(name: str, origin: str) -> str:
    protocol, prefix = _PROTOCOLS[name]
    return f"""
[[providers]]
name = "{name}"
protocol = "{protocol}"
base_url = "{origin}{prefix}"
api_key = "sandbox"
failures_to_open = 1000
"""


def _model(provider: str, name: str) -> str:
    facts = _known(provider, name)
    kind = facts.get("kind", "chat")
    behaviour = "sandbox-embedding" if kind == "embedding" else "sandbox"
    upstreams = [f"{provider}/{name}-{behaviour}"]
    if name == SHAKY:
        upstreams.insert(0, f"{provider}/{name}-sandbox-error-500")
    price = facts["price"]
    assert isinstance(price, dict)
    plain = {unit: text for unit, text in price.items() if isinstance(text, str)}
    return f"""
[[models]]
id = "{name}"
kind = "{kind}"
upstreams = {json.dumps(upstreams)}
context_window = {facts["context_window"]}
max_output_tokens = {facts.get("max_output_tokens", 0)}
capabilities = {json.dumps(facts.get("capabilities", []))}
price = {{ {", ".join(f'{unit} = "{text}"' for unit, text in plain.items())} }}
"""


def _known(provider: str, name: str) -> dict[str, object]:
    listed = json.loads((_PRICES / f"{provider}.json").read_text())["models"]
    (found,) = (model for model in listed if model["id"] == name)
    assert isinstance(found, dict)
    return found


__all__ = [
    "CHECKOUT",
    "MODELS",
    "SHAKY",
    "Shop",
    "configuration",
    "eventually",
    "serving",
    "token",
    "wait_until_effective",
]
