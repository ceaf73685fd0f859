"""The Gemini wire: generateContent in all its forms, token counting, embeddings, the model list.

Common to both sides: `fields` reads members in either spelling, `wire` names what is read of an
answer and how Google's words translate, `signature` is the slot for sealed reasoning, `framing`
how chunks follow one another.

As a server: `downstream` reads what decides route and price, `scan` what a body may cost, `prompt`
and `turns` all the rest of it; `writer` writes the answer, `refusal` our errors, `models` the list.
As a client: `encode` and `contents` write the request, by what `traits` knows of the model;
`reader` reads the answer, `failure` its errors, `upstream` brings them together. `passing` relays
between two Gemini ends, `embeddings` are both sides of theirs, and `routes` says which path is
which operation.
"""
