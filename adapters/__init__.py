"""Adapters: everything the outside speaks, without I/O.

Bytes in, events out; events in, bytes out. No clock, socket, log or thread, and every buffer has
a limit, so the same code serves the gateway, the sandbox provider and the tests. Standard library
and msgspec only; nothing of ours is imported from elsewhere.

Reading order: `canonical` (the vocabulary in the middle), `errors` (what a client may be told),
`codec` (the two interfaces), `stream` (what may follow what, and how it is counted), `sse`, then
the two ways of an answer: `translate` (from one protocol to another) and `passing` (to its own,
with `limited` for streams that may be cut). Of `anthropic`, `gemini` and `openai` read one.
`catalogue`, `pricing` and `estimate` say what a model is and what it costs, `registry` which codec
has which name; `sandbox` is a provider that misbehaves on demand.
"""
