"""One-time sign-in links for the operator, made on the gateway's own machine.

Light on purpose: `farebox serve` and `farebox console link` make links without the parts of which
the console's own process is built. `sign_in` says who may use one.
"""

from __future__ import annotations

import ipaddress
from datetime import datetime, timedelta
from urllib.parse import urlsplit

from console import tokens
from console.store import DatabaseError, people
from ledger.connection import connect
from ledger.errors import brief

LINK_LASTS = timedelta(minutes=10)

_EVERY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what operators write


class LinkUnavailable(Exception):
    """The database did not answer; the message is a sentence."""


def sign_in_link(conninfo: str, base_url: str, now: datetime) -> str:
    """A new link under the gateway's address; good once, for ten minutes, on this machine.

    Blocking.
    """
    token = tokens.mint()
    try:
        with connect(conninfo, limited=True) as connection, connection.transaction():
            people.add_link(connection, tokens.hash_of(token), now, now + LINK_LASTS)
    except DatabaseError as error:
        raise LinkUnavailable(f"The database does not answer: {brief(error)}") from error
    return f"{base_url}/console/sign-in/{token}"


def local_url(public_url: str, host: str, port: int) -> str:
    """Where this machine's own browsers reach a gateway that listens on `host` and `port`."""
    named = urlsplit(public_url).hostname or ""
    if named == "localhost" or is_loopback(named):
        return public_url.rstrip("/")
    host = _EVERY_ADDRESS.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_local(address: str, gateway_url: str) -> bool:
    """Whether a peer with this address is on the machine of the gateway.

    Who calls the one address that the gateway listens on from the same machine comes from there.
    """
    return is_loopback(address) or (address != "" and address == urlsplit(gateway_url).hostname)


def is_loopback(address: str) -> bool:
    """Whether an address is one of this machine's own that no other machine can have."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback
