"""What workers serve, packed for the way from the supervisor to them (`farebox.control`)."""

from __future__ import annotations

from pathlib import Path

import msgspec

from farebox.catalogue import BuiltIn
from farebox.config import Config


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration, and the provider that we run ourselves where it names none."""

    config: Config
    built_in: BuiltIn | None


def packed(settings: Settings) -> msgspec.Raw:
    """The settings as they travel."""
    return msgspec.Raw(_encoder.encode(settings))


def unpacked(raw: msgspec.Raw) -> Settings:
    """The settings that arrived."""
    return _decoder.decode(raw)


def _encode(value: object) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"a {type(value).__name__} cannot be told to a child")


def _decode(kind: type, value: object) -> object:
    if kind is Path:
        return Path(str(value))
    raise NotImplementedError(f"a {kind.__name__} cannot be told to a child")


_encoder = msgspec.json.Encoder(enc_hook=_encode)
_decoder = msgspec.json.Decoder(Settings, dec_hook=_decode)
