"""The one model in the middle: what every protocol is read into.

Token counts follow one convention whatever the provider's: totals are inclusive, details are
subsets of their total. `input_tokens` counts cached, cache-written and audio input too;
`output_tokens` counts reasoning and audio output too.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What one answer consumed, as the provider reported it or as we counted it.

    `pieces` holds what is not a token (`image`, `web_search`, `request`, `second`).
    `service_tier` is what the provider says it *served*, which may differ from what was asked.
    """

    input_tokens: int = 0
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    cache_write_1h_tokens: int = 0
    audio_input_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    audio_output_tokens: int = 0
    pieces: Mapping[str, int] = {}
    service_tier: str = ""
