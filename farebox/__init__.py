"""Farebox: the composition root. It imports everyone; nobody imports it.

Reading order: `cli` (the command), `config` (TOML to settings), `serve` (the supervisor),
`worker` (one data-plane worker from its parts), `admin` (metrics and health), `embedded`
(Postgres for a fresh machine), `sandbox` (the scripted provider as a server).
"""
