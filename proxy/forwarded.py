"""From which address a request comes, where reverse proxies stand before us (`X-Forwarded-For`).

Each proxy writes the address of its peer behind what the header said already, and anybody may send
a header that says something. So an entry is worth what whoever wrote it is: the last one was
written by our own peer, the one before it by whom that names, and so on. It is read from its end,
for as long as who wrote the next entry is one of `server.trusted_proxies`. Whoever stands there
then is the client. With no trusted proxy that is our peer, whatever the header says.

Only requests of the control plane ask for this: for models it does not matter where one is.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence

FORWARDED_FOR = b"x-forwarded-for"

_HOPS_MAX = 16  # a header may have thousands, and each has to be read

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def client_address(peer: str, forwarded_for: str, trusted_proxies: Sequence[str]) -> str:
    """The address of whoever asks; `peer` where that is no trusted proxy, or says nothing.

    An entry that is no address ends the walk: the client is then the last proxy that was told.
    """
    client = _address_in(peer)
    if client is None or not forwarded_for or not trusted_proxies:
        return peer
    trusted = [parse_network(each) for each in trusted_proxies]
    for entry in reversed(forwarded_for.rsplit(",", _HOPS_MAX)[-_HOPS_MAX:]):
        named = _address_in(entry.strip())
        if named is None or not any(client in network for network in trusted):
            break
        client = named
    return str(client)


def parse_network(text: str) -> Network:
    """`127.0.0.1`, `10.0.0.0/8` or `2001:db8::/32` as a network.

    Raises ValueError with a sentence fragment that says what is wrong.
    """
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise ValueError(
            'is no address or network; write one such as "127.0.0.1" or "10.0.0.0/8"'
        ) from None
    if network.prefixlen == 0:
        raise ValueError("trusts everybody to say who they are; name only your own proxies")
    if "/" in text and ipaddress.ip_interface(text).ip != network.network_address:
        raise ValueError(f'has bits behind its prefix; write "{network}"')
    return network


def _address_in(entry: str) -> Address | None:
    """The address that an entry names, with or without a port; None where it is none."""
    if entry.startswith("["):
        host, bracket, port = entry[1:].partition("]")
        colon, digits = port[:1], port[1:]
        if not bracket or (port and (colon != ":" or not _is_port(digits))):
            return None
    elif entry.count(":") == 1:
        host, _, digits = entry.partition(":")
        if not _is_port(digits):
            return None
    else:
        host = entry
    try:
        address = ipaddress.ip_address(host.partition("%")[0])  # a zone may be any text
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _is_port(digits: str) -> bool:
    return digits.isascii() and digits.isdigit()
