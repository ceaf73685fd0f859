"""Evals: evidence for routing. So far only its settings; nothing is recorded yet."""
