"""The console: the control plane, what people and programs look after an account with.

A process of its own (`serve.py`), put together in `app.py` from what each module has: `router`s for
the JSON API, `run` for what goes on by itself, pages, tools.

Rules
- Routes know no SQL: that is in `store/`, which alone knows psycopg. The books are changed through
  `ledger.directory` and their own functions, never by statements of ours.
- A route names what it does (`access.allowed`), and notes what it changed (`audit.note`) in the
  same transaction.
- Money is whole nano-dollars in Python and SQL, and an exact decimal string in JSON.

Read `app.py`, `context.py`, `errors.py`, `security.py`, then `access.py` and a module with routes.
"""
