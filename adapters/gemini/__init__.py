"""The Gemini wire: generateContent in all its forms, token counting, embeddings, the model list.

`fields` reads members under both spellings, `wire` names what is read of each message. As a
server: `downstream` reads what is asked and `scan` what it may cost, `prompt` reads all of it,
`writer` writes the answer, `refusal` our errors, `models` the list. As a client: `upstream` and
`encode` write the request (`traits` knows the models' ways), `reader` reads the answer, `failure`
its errors, `passing` relays between two Gemini ends. `routes` says which path is which operation.
"""
