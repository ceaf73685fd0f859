"""The list of models as Google's SDKs read it.

A model is named `models/ID`, and the SDKs put that name into the path as it is: an id with slashes
in it can be called back like any other.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qs

import msgspec

from adapters.codec import Listed
from adapters.errors import InvalidRequest

_PAGE_SIZE = 50
_PAGE_SIZE_MAX = 1000
_METHODS: Mapping[str, tuple[str, ...]] = {
    "chat": ("generateContent", "streamGenerateContent", "countTokens"),
    "embedding": ("embedContent", "batchEmbedContents"),
}


class ModelList:
    """`GET …/models` and `GET …/models/{id}`. A `codec.Listing`."""

    def page(self, models: Sequence[Listed], query: str) -> bytes:
        asked = parse_qs(query)
        size, begin = _size(asked), _begin(asked, models)
        shown = models[begin : begin + size]
        body: dict[str, object] = {"models": [_entry(each) for each in shown]}
        if begin + size < len(models):
            body["nextPageToken"] = urlsafe_b64encode(shown[-1].id.encode()).decode().rstrip("=")
        return msgspec.json.encode(body)

    def entry(self, model: Listed) -> bytes:
        return msgspec.json.encode(_entry(model))


def _size(asked: Mapping[str, list[str]]) -> int:
    text = (asked.get("pageSize") or asked.get("page_size") or [str(_PAGE_SIZE)])[-1]
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InvalidRequest("pageSize must be a whole number.", param="pageSize")
    return min(int(text), _PAGE_SIZE_MAX) or _PAGE_SIZE


def _begin(asked: Mapping[str, list[str]], models: Sequence[Listed]) -> int:
    """Behind the last model of the page before."""
    token = (asked.get("pageToken") or asked.get("page_token") or [""])[-1]
    if not token:
        return 0
    try:
        last = urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode()
        return next(at for at, each in enumerate(models, 1) if each.id == last)
    except (ValueError, StopIteration):
        raise InvalidRequest("pageToken is none of this list's.", param="pageToken") from None


def _entry(listed: Listed) -> dict[str, object]:
    model = listed.model
    entry: dict[str, object] = {
        "name": f"models/{listed.id}",
        "displayName": listed.id,
        "supportedGenerationMethods": _METHODS.get(model.kind, ()),
    }
    if model.context_window:
        entry["inputTokenLimit"] = model.context_window
    if model.max_output_tokens:
        entry["outputTokenLimit"] = model.max_output_tokens
    return entry
