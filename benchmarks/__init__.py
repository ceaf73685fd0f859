"""Benchmarks: what the gateway costs, next to calling the provider directly and to other proxies.

Everything runs on loopback against a provider of ours, in pairs within one run, so that ratios
survive a noisy machine. `README.md` defines every figure.

Reading order: `answers` and `provider` (a fast stand-in for an LLM provider), `requests` and `load`
(clients), `processes` (starting, pinning, accounting), `targets` (direct, Farebox), `peers` (nginx,
haproxy, LiteLLM, Portkey), `parts` (what is measured), `report` (tables and JSON), `__main__` (the
command), `table` (saved results for the README). On their own: `codecs`, `ledger`, `instructions`.
"""
