"""`farebox.example.toml` with every example in it in force."""

from __future__ import annotations

import re
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "farebox.example.toml"

_IDLE = re.compile(r"^#(?=[\w\[])", re.MULTILINE)


def text() -> str:
    """All of it: a setting that is no default has a # before it, without a space."""
    return _IDLE.sub("", EXAMPLE.read_text())


def file(directory: Path) -> Path:
    """All of it, as a configuration file in `directory`."""
    path = directory / "farebox.toml"
    path.write_text(text())
    return path
