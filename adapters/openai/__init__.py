"""The OpenAI wire: Chat Completions, Embeddings and the model list, on either side.

`wire` has what is read of each message (the rest passes as bytes), `body` reads a request body
strictly and without losing a member. Then one pair of files for each operation: `*_downstream`
reads requests and words refusals, `*_upstream` writes requests and reads failures; `chat_relay`
carries an answer from one to the other. `routes` says which path is which operation.
"""
