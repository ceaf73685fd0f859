"""Benchmarks: what the gateway costs, next to calling the provider directly.

Everything runs on loopback against a provider of ours, in pairs within one run, so that ratios
survive a noisy machine. `README.md` defines every figure. Standard library only, apart from the
gateway under test.

Reading order: `provider` (a fast stand-in for an LLM provider), `load` (clients), `processes`
(starting, pinning, accounting), `targets` (direct, nginx, farebox), `parts` (what is measured),
`report` (tables and JSON), `__main__` (the command).
"""
