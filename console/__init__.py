"""The console: the control plane, what people and programs look after an account with.

A process of its own (`serve.py`), put together in `app.py` from what each module has: `router`s for
the JSON API, `run` for what goes on by itself, pages, tools.

Rules
- Routes know no SQL: that is in `store/`, which alone knows psycopg. The books are changed through
  `ledger.directory` and their own functions, never by statements of ours.
- A route names what it does (`access.allowed`), and notes what it changed (`audit.note`) in the
  same transaction.
- Money is whole nano-dollars in Python and SQL, and an exact decimal string in JSON.

Reading order: `settings`, `context` (what one process is made of), `app` (start here) and `serve`
(its server), `errors` and `security` (every answer, every change). Who asks: `tokens`, `sessions`
(an issuer's), `sign_in` (our own) with `links` (the operator's), `access` (roles, and what routes
ask for), `audit`. Routes, with `bodies`: `people`, `keys`, `usage`, `plan`, `catalogue`, `health`,
`payments`. What goes on by itself: `rollup` (sums of usage), `inbox` (what Stripe said), `recharge`
(the rules) and `recharger` (the calls), with `stripe_client` and `notices`. For agents: `mcp`, with
`bearers` (who calls) and `chat` (of models). For people: `pages`, of which `frame` comes first and
`site` says which is where, over `templates` and `static`.
"""
