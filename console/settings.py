"""Settings of the control plane: `[console]` and `[stripe]`.

Both structs hide what they hold: most of it is secret.
"""

from __future__ import annotations

import msgspec


class ConsoleSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[console]`: whether there is one, and whose sessions to trust, by shared secret (HS256) or
    by published keys. Where neither is set, one-time links sign in the operator.

    `login_url` is the issuer's page where people sign in, which sends them back to the console's
    sign-in page with a token in the fragment; `{state}` in it is replaced by random characters.
    """

    enabled: bool = True
    jwt_secret: str = ""
    jwks_url: str = ""
    issuer: str = ""
    audience: str = "authenticated"
    login_url: str = ""
    public_models: bool = False

    def __repr__(self) -> str:
        return f"ConsoleSettings(issuer={self.issuer!r})"


class StripeSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`[stripe]`: top-ups by card."""

    api_key: str = ""
    webhook_secret: str = ""
    api_base: str = "https://api.stripe.com"

    def __repr__(self) -> str:
        return f"StripeSettings(api_base={self.api_base!r})"
