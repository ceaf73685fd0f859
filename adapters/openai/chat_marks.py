"""Marks in a prompt up to which it should stay cached: OpenAI's, and Anthropic's as others send
them."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from adapters.canonical import Cache

_TTLS: Mapping[object, Cache] = {"5m": "5m", "30m": "30m", "1h": "1h", "12h": "12h", "24h": "12h"}


class CacheMark(msgspec.Struct, gc=False):
    """`prompt_cache_breakpoint`."""

    ttl: object = None


class CacheControl(msgspec.Struct, gc=False):
    """`cache_control`."""

    ttl: object = None


def cache_of(control: CacheControl | None, mark: CacheMark | None) -> Cache:
    """How long a mark asks for; without a time it is what the mark's own protocol means."""
    if mark is not None:
        return _TTLS.get(mark.ttl, "30m") if isinstance(mark.ttl, str) else "30m"
    if control is not None:
        return _TTLS.get(control.ttl, "5m") if isinstance(control.ttl, str) else "5m"
    return ""
