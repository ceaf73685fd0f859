"""Farebox: the composition root. It imports everyone; nobody imports it.

Reading order: `cli` and `commands` (the command), `config` (TOML to settings; `decode` reports what
is wrong, `secret` makes the server's), `catalogue` (what is served; `presets` and `prices` are what
is known of providers), `serve` (from nothing to a running gateway), `worker` (one data-plane worker
from its parts), `books` (its ledger, here or in another process), `supervise`, `children`,
`sockets`, `control`, `served`, `child` and `totals` (several processes, what they say to each
other, their figures as one), `console_child` and `console_part` (the console's, which is one of
them whatever their number), `maintenance`, `admin` (metrics and health), `embedded` (Postgres for a
fresh machine), `sandbox` (the scripted provider as a server), `demo` (a small real model as one).
"""
