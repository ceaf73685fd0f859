"""Ledger: who may spend, what is left, what was spent.

Knows no HTTP and no provider; a price is named units times integers. Money is integer
nano-dollars everywhere. Credit is leased from Postgres in advance, reservations live in memory
and in an append-only journal, and usage is posted in batches, so the hot path makes no database
round trip and a crash loses nothing.

Reading order: `money` (the only place that multiplies and rounds), `accounts` and `keys` (who),
`store` (what the books can do, and the words used), `errors` (why the ledger refuses), `limits`,
`fleet` with `rights`, `draws` and `valkey` (limits that several nodes share), `pool` (the credit of
one lease), `reservation`, `messages` (what workers and their ledger say), `records` (what the
journal remembers), `engine` (the sans-IO core) with its parts `book`, `outbox`, `waiting` and
`lanes`, `journal` and `segments`, `server` (engine + journal + lanes), `link` (how workers reach
it), `client` (what a worker holds), `postgres` and `memory` (two stores), `reaper` (what becomes of
the leases of a holder that fell silent), `directory` (accounts, keys and the price list in
Postgres), `usage`, `verify`, `migrate`, `connection` (as which role).
"""
