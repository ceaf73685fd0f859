"""Answers that use much of their protocol at once: the events of a stream, and a whole one."""

from __future__ import annotations

from adapters.catalogue import Protocol

Json = dict[str, object]

CHAT_USAGE: Json = {
    "prompt_tokens": 3,
    "completion_tokens": 5,
    "total_tokens": 8,
    "prompt_tokens_details": {"cached_tokens": 1, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 1},
}
CALLS: list[Json] = [
    {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a"'}},
    {"index": 1, "id": "c2", "function": {"name": "g", "arguments": ""}},
]
CHAT_EVENTS: list[Json] = [
    {
        "id": "i",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "delta": {"role": "assistant", "content": "hé"},
                "finish_reason": None,
                "logprobs": {
                    "content": [
                        {
                            "token": "x",
                            "logprob": -1,
                            "bytes": [1],
                            "top_logprobs": [{"token": "y", "logprob": -2}],
                        }
                    ]
                },
            }
        ],
        "service_tier": "default",
    },
    {
        "choices": [
            {
                "index": 0,
                "delta": {
                    "reasoning_content": "r",
                    "reasoning_details": [
                        {"type": "reasoning.text", "text": "x", "signature": "s"}
                    ],
                },
            }
        ]
    },
    {"choices": [{"index": 0, "delta": {"tool_calls": CALLS}}]},
    {
        "choices": [
            {
                "index": 0,
                "delta": {
                    "tool_calls": [
                        {"index": 0, "function": {"arguments": ":1}"}},
                        {"index": 1, "function": {"arguments": "{}"}},
                    ]
                },
            }
        ]
    },
    {
        "choices": [
            {
                "index": 0,
                "delta": {
                    "content": None,
                    "refusal": "no",
                    "annotations": [
                        {"type": "url_citation", "url_citation": {"url": "u", "title": "t"}}
                    ],
                },
                "finish_reason": "tool_calls",
            }
        ]
    },
    {"choices": [], "usage": CHAT_USAGE},
]
CHAT: Json = {
    "id": "i",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "x",
                "reasoning_content": "r",
                "tool_calls": [
                    {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                ],
                "refusal": None,
                "annotations": [],
            },
            "finish_reason": "stop",
            "logprobs": None,
        }
    ],
    "usage": CHAT_USAGE,
}
RESPONSES_USAGE: Json = {
    "input_tokens": 3,
    "output_tokens": 5,
    "total_tokens": 8,
    "input_tokens_details": {"cached_tokens": 1},
    "output_tokens_details": {"reasoning_tokens": 2},
}
ITEMS: list[Json] = [
    {
        "type": "reasoning",
        "id": "rs",
        "summary": [{"type": "summary_text", "text": "s"}],
        "encrypted_content": "e",
    },
    {
        "type": "message",
        "id": "m1",
        "role": "assistant",
        "status": "completed",
        "content": [
            {
                "type": "output_text",
                "text": "x",
                "annotations": [{"type": "url_citation", "url": "u", "title": "t"}],
            }
        ],
    },
    {"type": "function_call", "id": "fc", "call_id": "c1", "name": "f", "arguments": "{}"},
    {"type": "custom_tool_call", "id": "ct", "call_id": "c2", "name": "g", "input": "raw"},
    {"type": "web_search_call", "id": "ws", "status": "completed"},
]
RESPONSE: Json = {
    "id": "resp",
    "object": "response",
    "status": "completed",
    "model": "m",
    "output": ITEMS,
    "usage": RESPONSES_USAGE,
    "service_tier": "default",
    "incomplete_details": None,
    "error": None,
}
RESPONSES_EVENTS: list[Json] = [
    {
        "type": "response.created",
        "response": {**RESPONSE, "status": "in_progress", "output": [], "usage": None},
        "sequence_number": 0,
    },
    {"type": "response.in_progress", "response": {}},
    {"type": "response.output_item.added", "output_index": 0, "item": {**ITEMS[0], "summary": []}},
    {
        "type": "response.reasoning_summary_part.added",
        "output_index": 0,
        "summary_index": 0,
        "part": {"type": "summary_text", "text": ""},
        "item_id": "rs",
    },
    {
        "type": "response.reasoning_summary_text.delta",
        "output_index": 0,
        "summary_index": 0,
        "delta": "s",
        "item_id": "rs",
    },
    {"type": "response.output_item.done", "output_index": 0, "item": ITEMS[0]},
    {"type": "response.output_item.added", "output_index": 1, "item": {**ITEMS[1], "content": []}},
    {
        "type": "response.content_part.added",
        "output_index": 1,
        "content_index": 0,
        "part": {"type": "output_text", "text": "", "annotations": []},
        "item_id": "m1",
    },
    {
        "type": "response.output_text.delta",
        "output_index": 1,
        "content_index": 0,
        "delta": "x",
        "item_id": "m1",
    },
    {
        "type": "response.output_text.annotation.added",
        "output_index": 1,
        "content_index": 0,
        "annotation": {"type": "url_citation", "url": "u", "title": "t"},
    },
    {"type": "response.output_text.done", "output_index": 1, "content_index": 0, "text": "x"},
    {"type": "response.output_item.done", "output_index": 1, "item": ITEMS[1]},
    {
        "type": "response.output_item.added",
        "output_index": 2,
        "item": {**ITEMS[2], "arguments": ""},
    },
    {
        "type": "response.function_call_arguments.delta",
        "output_index": 2,
        "delta": "{}",
        "item_id": "fc",
    },
    {"type": "response.function_call_arguments.done", "output_index": 2, "arguments": "{}"},
    {"type": "response.output_item.done", "output_index": 2, "item": ITEMS[2]},
    {"type": "response.output_item.added", "output_index": 3, "item": {**ITEMS[3], "input": ""}},
    {"type": "response.custom_tool_call_input.delta", "output_index": 3, "delta": "raw"},
    {"type": "response.output_item.done", "output_index": 3, "item": ITEMS[3]},
    {"type": "response.completed", "response": RESPONSE},
    {"type": "error", "message": "m", "code": "x"},
]
MESSAGE_USAGE: Json = {
    "input_tokens": 3,
    "cache_read_input_tokens": 1,
    "cache_creation_input_tokens": 2,
    "cache_creation": {"ephemeral_5m_input_tokens": 1, "ephemeral_1h_input_tokens": 1},
    "output_tokens": 5,
    "server_tool_use": {"web_search_requests": 1},
    "service_tier": "standard",
}
BLOCKS: list[Json] = [
    {"type": "thinking", "thinking": "t", "signature": "s"},
    {"type": "redacted_thinking", "data": "d"},
    {"type": "text", "text": "x", "citations": [{"url": "u", "title": "t"}]},
    {"type": "tool_use", "id": "t1", "name": "f", "input": {"a": 1}},
    {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
    {"type": "web_search_tool_result", "tool_use_id": "s", "content": []},
]
MESSAGE: Json = {
    "id": "msg",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": BLOCKS,
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": MESSAGE_USAGE,
}
MESSAGE_EVENTS: list[Json] = [
    {"type": "message_start", "message": {**MESSAGE, "content": [], "stop_reason": None}},
    {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "thinking", "thinking": "", "signature": ""},
    },
    {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "thinking_delta", "thinking": "t"},
    },
    {
        "type": "content_block_delta",
        "index": 0,
        "delta": {"type": "signature_delta", "signature": "s"},
    },
    {"type": "content_block_stop", "index": 0},
    {"type": "ping"},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "x"}},
    {
        "type": "content_block_delta",
        "index": 1,
        "delta": {"type": "citations_delta", "citation": {"url": "u", "title": "t"}},
    },
    {"type": "content_block_stop", "index": 1},
    {
        "type": "content_block_start",
        "index": 2,
        "content_block": {"type": "tool_use", "id": "t", "name": "f", "input": {}},
    },
    {
        "type": "content_block_delta",
        "index": 2,
        "delta": {"type": "input_json_delta", "partial_json": '{"a":1}'},
    },
    {"type": "content_block_stop", "index": 2},
    {"type": "content_block_start", "index": 3, "content_block": BLOCKS[1]},
    {"type": "content_block_stop", "index": 3},
    {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use", "stop_sequence": None},
        "usage": MESSAGE_USAGE,
    },
    {"type": "message_stop"},
]
GENERATED: Json = {
    "candidates": [
        {
            "index": 0,
            "content": {
                "parts": [
                    {"text": "x", "thought": True, "thoughtSignature": "c2ln"},
                    {"functionCall": {"id": "a", "name": "f", "args": {"x": 1}}},
                    {"inlineData": {"data": "AA"}},
                ]
            },
            "finishReason": "STOP",
            "finishMessage": "m",
            "groundingMetadata": {"groundingChunks": [{"web": {"uri": "u"}}]},
            "citationMetadata": {"citations": [{"uri": "u"}]},
            "logprobsResult": {"chosenCandidates": [{"token": "x", "logProbability": -1}]},
        }
    ],
    "promptFeedback": {"blockReason": "SAFETY"},
    "usageMetadata": {"promptTokenCount": 1, "promptTokensDetails": [{"modality": "AUDIO"}]},
    "error": None,
}


GENERATED_EVENTS: list[Json] = [
    GENERATED,
    {
        "candidates": [{"content": {"parts": [{"text": "a"}]}}],
        "modelVersion": "m",
        "responseId": "r",
    },
    {
        "candidates": [
            {
                "content": {
                    "parts": [
                        {
                            "functionCall": {"name": "f", "args": {"a": 1}},
                            "thoughtSignature": "c2ln",
                        }
                    ]
                },
                "finishReason": "STOP",
            }
        ],
        "usageMetadata": {
            "promptTokenCount": 1,
            "candidatesTokenCount": 2,
            "thoughtsTokenCount": 3,
            "totalTokenCount": 6,
            "toolUsePromptTokenCount": 1,
            "cachedContentTokenCount": 1,
        },
    },
]

ANSWERS: dict[Protocol, tuple[list[Json], Json]] = {
    "openai": (CHAT_EVENTS, CHAT),
    "openai-responses": (RESPONSES_EVENTS, RESPONSE),
    "anthropic": (MESSAGE_EVENTS, MESSAGE),
    "gemini": (GENERATED_EVENTS, GENERATED),
}
