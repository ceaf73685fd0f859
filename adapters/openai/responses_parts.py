"""The parts of messages and of tool results, as Responses clients write them."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence

import msgspec

from adapters.canonical import Audio, Cache, Document, Image, Part, Refusal, Text
from adapters.errors import InvalidRequest, RequestNotExpressible
from adapters.media import checked, parse_data_url, sniffed
from adapters.raw import UNREADABLE

_TTLS: Mapping[object, Cache] = {"12h": "12h", "30m": "30m"}
_AUDIO = {"wav": "audio/wav", "mp3": "audio/mp3"}


class _Mark(msgspec.Struct, gc=False):
    ttl: object = None


class _Url(msgspec.Struct, gc=False):
    url: str


class _Sound(msgspec.Struct, gc=False):
    data: str
    format: str = "wav"


class _Part(msgspec.Struct, gc=False):
    type: str = ""
    text: str | None = None
    refusal: str | None = None
    image_url: str | _Url | None = None
    detail: object = None
    file_id: str | None = None
    file_data: str | None = None
    file_url: str | None = None
    filename: str | None = None
    input_audio: _Sound | None = None
    prompt_cache_breakpoint: _Mark | None = None


_decode_parts = msgspec.json.Decoder(str | list[_Part] | None).decode
_decode_part = msgspec.json.Decoder(_Part).decode


def read_parts(raw: msgspec.Raw, where: str) -> tuple[Part, ...]:
    """The parts of a message or of a result. Raises InvalidRequest, RequestNotExpressible."""
    if not raw:
        return ()
    try:
        parts = _decode_parts(raw)
    except UNREADABLE as error:
        parts = _one_object(raw, where, error)
    if isinstance(parts, str):
        return (Text(text=parts),)
    return tuple(_part(part, f"{where}[{at}]") for at, part in enumerate(parts or ()))


def _one_object(raw: msgspec.Raw, where: str, error: Exception) -> Sequence[_Part]:
    """A part that stands alone; anything else is no content."""
    try:
        return [_decode_part(raw)]
    except UNREADABLE:
        raise InvalidRequest(
            f"{where} must be a string, or a list of parts: {error}.", param=where
        ) from None


def _part(part: _Part, where: str) -> Part:
    read = _PARTS.get(part.type)
    if read is None:
        raise RequestNotExpressible(
            f"{where}: content of type {part.type!r} is not known here.", param=where
        )
    return read(part, where)


def _text(part: _Part, where: str) -> Part:
    return Text(text=_required(part.text, f"{where}.text"), cache=_cache(part))


def _refusal(part: _Part, where: str) -> Part:
    return Refusal(text=_required(part.refusal, f"{where}.refusal"))


def _image(part: _Part, where: str) -> Part:
    url = part.image_url.url if isinstance(part.image_url, _Url) else part.image_url
    detail = part.detail if isinstance(part.detail, str) else ""
    if not url:
        file_id = _required(part.file_id, f"{where}.image_url")
        return Image(file_id=file_id, detail=detail, cache=_cache(part))
    if not _is_data(url):
        return Image(url=url, detail=detail, cache=_cache(part))
    media_type, data = parse_data_url(url, f"{where}.image_url")
    media_type = checked(media_type, "image", f"{where}.image_url")
    return Image(media_type=media_type, data=data, detail=detail, cache=_cache(part))


def _file(part: _Part, where: str) -> Part:
    name, cache = part.filename or "", _cache(part)
    if not part.file_data:
        if part.file_url:
            return Document(url=part.file_url, name=name, cache=cache)
        file_id = _required(part.file_id, f"{where}.file_data")
        return Document(file_id=file_id, name=name, cache=cache)
    given = part.file_data if _is_data(part.file_data) else f"data:;base64,{part.file_data}"
    named, data = parse_data_url(given, f"{where}.file_data")
    media_type = named or sniffed(data, "application/pdf")
    if media_type.startswith("text/"):
        text = b64decode(data).decode(errors="replace")
        return Document(media_type=media_type, text=text, name=name, cache=cache)
    return Document(media_type=media_type, data=data, name=name, cache=cache)


def _audio(part: _Part, where: str) -> Part:
    sound = part.input_audio
    if sound is None or not sound.data:
        raise InvalidRequest(f"{where}.input_audio is required.", param=f"{where}.input_audio")
    return Audio(media_type=_AUDIO.get(sound.format, f"audio/{sound.format}"), data=sound.data)


_PARTS: Mapping[str, Callable[[_Part, str], Part]] = {
    "input_text": _text,
    "output_text": _text,
    "text": _text,
    "summary_text": _text,
    "reasoning_text": _text,
    "refusal": _refusal,
    "input_image": _image,
    "computer_screenshot": _image,
    "input_file": _file,
    "input_audio": _audio,
}


def _required(value: str | None, where: str) -> str:
    if value is None:
        raise InvalidRequest(f"{where} is required.", param=where)
    return value


def _cache(part: _Part) -> Cache:
    mark = part.prompt_cache_breakpoint
    return "" if mark is None else _TTLS.get(mark.ttl, "30m")


def _is_data(url: str) -> bool:
    return url[:5].lower() == "data:"
