"""One-time sign-in links for the operator, made on the gateway's own machine.

Light on purpose: `farebox serve` and `farebox console link` make links without the parts of which
the console's own process is built. `sign_in` says who may use one.
"""

from __future__ import annotations

import ipaddress
from datetime import datetime, timedelta

from console import tokens
from console.store import people
from ledger.connection import connect

LINK_LASTS = timedelta(minutes=10)


def sign_in_link(conninfo: str, base_url: str, now: datetime) -> str:
    """A new link under the gateway's address; good once, for ten minutes, on this machine.

    Blocking. Raises psycopg.Error.
    """
    token = tokens.mint()
    with connect(conninfo, limited=True) as connection, connection.transaction():
        people.add_link(connection, tokens.hash_of(token), now, now + LINK_LASTS)
    return f"{base_url}/console/sign-in/{token}"


def is_loopback(address: str) -> bool:
    """Whether an address is one of this machine's own that no other machine can have."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return False
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return (mapped or parsed).is_loopback
