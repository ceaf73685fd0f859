"""Tokens without a tokenizer: upper bounds to reserve by, and counts to settle by.

The bound rests on one fact: byte-level tokenizers never make more tokens than there are bytes.
JSON text is at least as long as the strings in it, and its braces and keys are longer than what
providers add for each message, so the length of a body bounds its text. Media is what it is not
true of: a protocol's scan finds those parts, and their bytes are replaced by what they may cost. No
provider bills more input for one pass over a prompt than the model's window, which caps everything.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from adapters.codec import Request, Scan

_BYTES_PER_TOKEN = 4  # of English text, when counting

_BASE_TOKENS = 32
_TOOL_TOKENS = 64  # what a provider's template may add for each tool
_HIDDEN_TOKENS = 1_000_000  # input that is not in the body, where no window is known


class Bound(msgspec.Struct, frozen=True, gc=False):
    """The most that a request can consume, as far as its body tells.

    `text_bytes` is the text that was seen, for counting. `predicted_tokens` are output that is
    billed beyond the output cap. `audio`: audio may be billed, at its own price; `long_cache`: so
    may input that is kept for an hour or more. `pieces` are priced units other than tokens.
    """

    input_tokens: int
    text_bytes: int
    predicted_tokens: int = 0
    audio: bool = False
    pieces: Mapping[str, int] = msgspec.field(default_factory=dict)
    long_cache: bool = False


def translated(scan: Scan) -> Scan:
    """What may still be consumed where nothing but the prompt itself is sent."""
    return msgspec.structs.replace(scan, passes=1, pieces={}, predicted_tokens=0, window=0)


def counted_tokens(text_bytes: int) -> int:
    """Our count for text whose provider does not say: four bytes a token, rounded up.

    Good enough for English; other languages and code have fewer bytes a token, where it errs in
    the customer's favour.
    """
    return -(-text_bytes // _BYTES_PER_TOKEN)


def bound(request: Request, context_window: int = 0, *, native: bool = True) -> Bound:
    """The most input that `request` can be; `context_window` 0: unknown. Never raises.

    `native`: a provider of its own protocol may get it. No other runs tools of the provider's,
    or whatever else makes a model read its prompt again.
    """
    scan = request.scan if native else translated(request.scan)
    if context_window:
        context_window = max(context_window, scan.window)
    if request.kind != "chat":
        # Each of several inputs has a window of its own, so the window is no cap here.
        return Bound(request.body_bytes + _BASE_TOKENS, scan.text_bytes)
    tokens = (
        request.body_bytes
        - scan.media_bytes
        + scan.media_tokens
        + _TOOL_TOKENS * scan.tools
        + _BASE_TOKENS
    )
    if scan.hidden:
        tokens += context_window or _HIDDEN_TOKENS
    if context_window:
        tokens = min(tokens, context_window)
    if scan.passes > 1:  # what a provider's tools find is read together with all that was there
        tokens += (scan.passes - 1) * (context_window or max(tokens, _HIDDEN_TOKENS))
    return Bound(
        input_tokens=tokens,
        text_bytes=scan.text_bytes,
        predicted_tokens=scan.predicted_tokens,
        audio=scan.audio,
        pieces={**request.pieces, **scan.pieces} if scan.pieces else request.pieces,
        long_cache=scan.long_cache,
    )
