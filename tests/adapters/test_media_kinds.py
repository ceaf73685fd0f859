"""Media is sent on as the kind that it was reserved for, or not at all.

A picture is held at twenty thousand tokens; a film or a book may be billed as a million. So data of
one kind cannot travel in the place of another, whatever it is called.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping

import pytest

from adapters.anthropic.downstream import MessagesDownstream
from adapters.codec import Ask, DownstreamCodec
from adapters.envelope import Envelopes
from adapters.errors import InvalidRequest
from adapters.gemini.downstream import GenerateDownstream
from adapters.openai.chat_downstream import ChatDownstream
from adapters.openai.responses_downstream import ResponsesDownstream

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"x" * 40).decode()
PDF = base64.b64encode(b"%PDF-1.4\n" + b"x" * 40).decode()
WAV = base64.b64encode(b"RIFF\0\0\0\0WAVE" + b"x" * 40).decode()
FILM = base64.b64encode(b"\0\0\0\x18ftypmp42" + b"x" * 40).decode()

Json = Mapping[str, object]


def chat_image(media_type: str, data: str) -> Json:
    url = f"data:{media_type};base64,{data}"
    part = {"type": "image_url", "image_url": {"url": url}}
    return {"model": "m", "messages": [{"role": "user", "content": [part]}]}


def chat_audio(media_type: str, data: str) -> Json:
    sound = {"data": f"data:{media_type};base64,{data}", "format": "wav"}
    part = {"type": "input_audio", "input_audio": sound}
    return {"model": "m", "messages": [{"role": "user", "content": [part]}]}


def responses_image(media_type: str, data: str) -> Json:
    part = {"type": "input_image", "image_url": f"data:{media_type};base64,{data}"}
    return {"model": "m", "input": [{"role": "user", "content": [part]}]}


def messages_image(media_type: str, data: str) -> Json:
    source = {"type": "base64", "media_type": media_type, "data": data}
    part = {"type": "image", "source": source}
    return {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": [part]}]}


def gemini_media(media_type: str, data: str) -> Json:
    part = {"inlineData": {"mimeType": media_type, "data": data}}
    return {"contents": [{"role": "user", "parts": [part]}]}


def read(codec: DownstreamCodec, body: Json) -> None:
    """Read a request as it is read for another protocol. Raises InvalidRequest."""
    request = codec.decode(json.dumps(body).encode(), Ask(id="m"))
    codec.prompt(request, Envelopes(b"s" * 32, "1"))


@pytest.mark.parametrize(
    ("media_type", "data"),
    [
        ("application/pdf", PDF),
        ("image/png", PDF),
        ("image/png", WAV),
        ("video/mp4", FILM),
    ],
)
@pytest.mark.parametrize(
    ("codec", "body"),
    [
        (ChatDownstream(), chat_image),
        (ResponsesDownstream(), responses_image),
        (MessagesDownstream(), messages_image),
    ],
)
def test_an_image_is_an_image(
    codec: DownstreamCodec, body: Callable[[str, str], Json], media_type: str, data: str
) -> None:
    with pytest.raises(InvalidRequest, match="came as image"):
        read(codec, body(media_type, data))
    read(codec, body("image/jpeg", PNG))


@pytest.mark.parametrize(("media_type", "data"), [("application/pdf", PDF), ("audio/wav", PDF)])
def test_audio_is_audio(media_type: str, data: str) -> None:
    with pytest.raises(InvalidRequest, match="came as audio"):
        read(ChatDownstream(), chat_audio(media_type, data))
    read(ChatDownstream(), chat_audio("audio/mp3", WAV))


@pytest.mark.parametrize("media_type", ["image/png", "audio/wav", "text/plain"])
def test_googles_media_is_what_it_is_called(media_type: str) -> None:
    with pytest.raises(InvalidRequest, match="came as"):
        read(GenerateDownstream(), gemini_media(media_type, PDF))
    read(GenerateDownstream(), gemini_media("application/pdf", PNG))  # held as a document
    read(GenerateDownstream(), gemini_media("image/jpeg", PNG))
