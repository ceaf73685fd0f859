"""The Anthropic wire: Messages, token counting, the model list.

`wire` names what is read of each message and counts its usage. As a server: `downstream` reads
what is asked and `scan` what it may cost, `prompt` reads all of it, `writer` writes the answer,
`refusal` our errors, `models` the list. As a client: `upstream` and `encode` write the request
(`traits` knows the models' ways, `thinking` how each is told to think), `reader` reads the answer,
`failure` its errors, `passing` relays between two Anthropic ends. `routes` says which path is which
operation.
"""
