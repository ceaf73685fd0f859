"""The sandbox provider: every shape and every failure of an answer, by the name of its model.

Not a model, and its answers say so. It speaks OpenAI's Chat Completions, Responses and Embeddings,
Anthropic's Messages and Gemini's generateContent, and refuses what those providers refuse, in
their words. `respond` turns a request into a script, which a server plays: bytes, pauses, and the
ways in which providers fail. The same request gets the same script, down to the byte; there is no
clock and no chance in it, and what its model's name does not say comes in with it: how often it was
asked before, and its provider's mood (`Circumstances`). Nothing of the gateway's own codecs is
used here: else both could be wrong together.

Usage follows a rule that tests can count by. Prompt: the bytes of the messages' text divided by
four and rounded up, and four for each message. Completion: one token for each piece, which is a
word or eight characters of JSON, and 64 for what a model claims to have reasoned.

In reading order: `script` (what a server plays), `asked` and `answer` (a request and an answer in
no protocol), `behaviours` and `models` (what is written, by model name), `performance` (how it is
played), `shapes` and `signing` (strict readers, signatures), and for each protocol its words, its
request and its answer; `routes` begins with a request's head.
"""

from adapters.sandbox.behaviours import ECHO
from adapters.sandbox.chat_answer import CREATED, FINGERPRINT
from adapters.sandbox.models import MODELS, Circumstances, Model, find
from adapters.sandbox.routes import respond
from adapters.sandbox.script import Action, Cut, Data, Hang, Head, Pause, Reset, Spoilt

__all__ = [
    "CREATED",
    "ECHO",
    "FINGERPRINT",
    "MODELS",
    "Action",
    "Circumstances",
    "Cut",
    "Data",
    "Hang",
    "Head",
    "Model",
    "Pause",
    "Reset",
    "Spoilt",
    "find",
    "respond",
]
