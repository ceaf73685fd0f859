"""Configurations of models, for who looks at what is made of them."""

from __future__ import annotations

OWN = '[[providers]]\nname = "own"\nbase_url = "http://127.0.0.1:1/v1"\n'

PARTLY_PRICED = (
    OWN
    + """
[[models]]
id = "noprice"
upstreams = ["own/a"]
price = { input = "1" }

[[models]]
id = "talks"
upstreams = ["own/b", "own/c"]
upstream_price = { "own/c" = { input = "1", output = "2" } }
"""
)
"""A model without a price, and one with a price at its second upstream only."""
