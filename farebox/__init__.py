"""Farebox: the composition root. It imports everyone; nobody imports it.

Reading order: `cli` and `commands` (the command), `config` (TOML to settings; `decode` reports what
is wrong, `secret` makes the server's), `catalogue` (what is served; `presets` and `prices` are what
is known of providers), `serve` (the supervisor), `worker` (one data-plane worker from its parts),
`admin` (metrics and health), `embedded` (Postgres for a fresh machine), `sandbox` (the scripted
provider as a server), `demo` (a small real model as one).
"""
