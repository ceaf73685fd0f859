"""Adapters: everything the outside speaks, without I/O.

Bytes in, events out; events in, bytes out. No clock, socket, log or thread, and every buffer has
a limit, so the same code serves the gateway, the sandbox provider and the tests. Standard library
and msgspec only; nothing of ours is imported from elsewhere.

Reading order: `canonical` (the vocabulary in the middle), `errors` (what a client may be told),
`codec` (the two interfaces), `sse`, `openai` (the wire), `catalogue`, `pricing` and `estimate`
(what a model is and what it costs), `sandbox` (a provider that misbehaves on demand),
`registry` (protocol name to codec).
"""
