"""One conversation with a real model behind the gateway: real tokens, streamed and billed."""

from __future__ import annotations

import importlib.util
from decimal import Decimal
from pathlib import Path

import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.fakes.process import LOOPBACK, serving

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="the demo's model is not installed"
)


def converse(client: OpenAI) -> None:
    (model,) = [model.id for model in client.models.list()]
    talk: list[ChatCompletionMessageParam] = [
        {"role": "user", "content": "What is the capital of France? Answer in one word."}
    ]
    first = client.chat.completions.create(model=model, messages=talk, max_tokens=32)
    said = first.choices[0].message.content
    assert said
    assert first.usage is not None
    assert first.usage.completion_tokens > 0
    talk += [
        {"role": "assistant", "content": said},
        {"role": "user", "content": "And of Italy?"},
    ]
    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in client.chat.completions.create(
            model=model, messages=talk, max_tokens=32, stream=True
        )
    ]
    assert len(pieces) > 1
    assert "".join(pieces)


def test_a_real_model_is_streamed_and_billed(tmp_path: Path) -> None:
    with serving(tmp_path, LOOPBACK, "--demo") as gateway:
        with OpenAI(
            base_url=f"{gateway.base_url}/v1", api_key=gateway.key, max_retries=0
        ) as client:
            converse(client)
        assert gateway.stop() == 0
        records = gateway.records("usage", "export", "demo", "--format", "jsonl")
        assert [record["billing_status"] for record in records] == ["charged", "charged"]
        assert all(int(str(record["output_tokens"])) > 0 for record in records)
        charged = sum(Decimal(str(record["charge_usd"])) for record in records)
        account = gateway.record("account", "show", "demo")
        assert Decimal(str(account["charged_usd"])) == charged
        gateway.run("ledger", "verify")
        gateway.start()
