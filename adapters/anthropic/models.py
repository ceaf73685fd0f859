"""The list of models as Anthropic's SDKs read it, page by page."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from urllib.parse import parse_qs

import msgspec

from adapters.anthropic.traits import Traits, traits_of
from adapters.catalogue import Model
from adapters.codec import Listed
from adapters.errors import InvalidRequest

LIMIT_DEFAULT = 20
LIMIT_MAX = 1000
_DIGITS = 10  # no limit has as many

_EFFORTS = ("low", "medium", "high", "xhigh", "max")


class ModelList:
    """`GET /v1/models` and `GET /v1/models/{id}`. A `codec.Listing`."""

    def page(self, models: Sequence[Listed], query: str) -> bytes:
        begin, end = _window([each.id for each in models], query)
        shown = models[begin:end]
        before = _one(parse_qs(query), "before_id")
        return msgspec.json.encode(
            {
                "data": [_entry(each) for each in shown],
                "has_more": begin > 0 if before else end < len(models),
                "first_id": shown[0].id if shown else None,
                "last_id": shown[-1].id if shown else None,
            }
        )

    def entry(self, model: Listed) -> bytes:
        return msgspec.json.encode(_entry(model))


def _window(ids: Sequence[str], query: str) -> tuple[int, int]:
    """Which of `ids` are on the page. Raises InvalidRequest."""
    asked = parse_qs(query)
    limit = _limit(_one(asked, "limit"))
    after, before = _one(asked, "after_id"), _one(asked, "before_id")
    if after and before:
        raise InvalidRequest("Send after_id or before_id, not both.", param="before_id")
    if before:
        end = _position(ids, before, "before_id")
        return max(0, end - limit), end
    begin = _position(ids, after, "after_id") + 1 if after else 0
    return begin, min(begin + limit, len(ids))


def _one(asked: dict[str, list[str]], name: str) -> str:
    return asked.get(name, [""])[-1]


def _limit(text: str) -> int:
    if not text:
        return LIMIT_DEFAULT
    number = text.isascii() and text.isdigit() and len(text) < _DIGITS
    if not number or not 1 <= int(text) <= LIMIT_MAX:
        raise InvalidRequest(f"limit must be from 1 to {LIMIT_MAX}.", param="limit")
    return int(text)


def _position(ids: Sequence[str], wanted: str, param: str) -> int:
    try:
        return ids.index(wanted)
    except ValueError:
        raise InvalidRequest(f"{param}: there is no model {wanted!r}.", param=param) from None


def _entry(listed: Listed) -> dict[str, object]:
    model = listed.model
    return {
        "type": "model",
        "id": listed.id,
        "display_name": listed.id,
        "created_at": datetime.fromtimestamp(model.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "line": None,
        "max_input_tokens": model.context_window or None,
        "max_tokens": model.max_output_tokens or None,
        "capabilities": _capabilities(model),
        "pricing": None if model.prices is None else dict(model.prices.published),
    }


def _capabilities(model: Model) -> dict[str, object]:
    """What a client may ask of the model here, not of the provider itself: what a translation
    carries is supported, whoever serves it."""
    upstreams = model.upstreams
    native = bool(upstreams) and all(each.provider.protocol == "anthropic" for each in upstreams)
    traits = traits_of(upstreams[0].model) if native else Traits()
    files, vision = "file" in model.capabilities, "vision" in model.capabilities
    return {
        "batch": _supported(False),
        "citations": _supported(native),
        "code_execution": _supported(native),
        "context_management": {
            "supported": native,
            "clear_thinking_20251015": _supported(native),
            "clear_tool_uses_20250919": _supported(native),
            "compact_20260112": _supported(native),
        },
        "effort": {
            "supported": bool(traits.efforts),
            **{effort: _supported(effort in traits.efforts) for effort in _EFFORTS},
        },
        "image_input": _supported(native or vision),
        "pdf_input": _supported(native or files),
        "server_tools": {
            "supported": native,
            "code_execution": _supported(native),
            "web_search": _supported(native),
        },
        "structured_outputs": _supported(traits.structured),
        "thinking": {
            "supported": traits.thinking != "",
            "types": {
                "adaptive": _supported(traits.thinking == "adaptive"),
                "between_tools": _supported(traits.thinking == "adaptive"),
                "disabled": _supported(not traits.always_thinks),
                "enabled": _supported(traits.thinking == "manual" or traits.sampling),
            },
        },
    }


def _supported(supported: bool) -> dict[str, bool]:
    return {"supported": supported}
