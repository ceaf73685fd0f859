"""The OpenAI wire: Chat Completions, Responses, Embeddings and the model list, on either side.

`wire` has what is read of each message (the rest passes as bytes), `body` reads a request body
strictly and without losing a member. Then one pair of files for each operation: `*_downstream`
reads requests and words refusals, `*_upstream` writes requests and reads failures; `chat_relay`
carries an answer from one to the other. `routes` says which path is which operation.

Chat, in reading order. As a server: `chat_downstream` with `chat_scan` (what a body may cost),
`chat_prompt` with `_turns`, `_tools` and `_marks` (what it means), `chat_writer` with `_whole` (its
answer). As a client: `chat_upstream` with `chat_relay` and `chat_meter` (answers that pass),
`chat_encode` with `chat_traits` (requests that are translated) and `chat_reader` (their answers).

Responses, in reading order. As a server: `responses_downstream` with `responses_scan` (what a body
may cost), `responses_state` (what it refers to), `responses_prompt` with `_input`, `_parts` and
`_tools` (what it means), `responses_writer` with `_items` and `_failed` (its answer). As a client:
`responses_upstream` with `_encode` and `_passing`, `responses_reader` with `_answer`. Both share
`responses_wire`.
"""
