"""Who may import whom, as data. Read each table as "only these places may import that"."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("adapters", "ledger", "evals", "proxy", "console", "farebox")

# package → packages of ours it may import
ALLOWED = {
    "adapters": set(),
    "ledger": set(),
    "evals": {"adapters", "ledger"},
    "proxy": {"adapters", "ledger", "evals"},
    "console": {"adapters", "ledger", "evals"},
    "farebox": set(PACKAGES),
}

# third party → files or folders (prefixes) that may import it
ONLY_IN = {
    "trio": (
        "proxy/",
        "console/",
        "farebox/",
        "ledger/client.py",
        "ledger/link.py",
        "ledger/wire.py",
        "ledger/server.py",
        "ledger/scribe.py",
        "ledger/sessions.py",
        "ledger/journal.py",
        "ledger/postgres.py",
        "ledger/memory.py",  # hints are waited for
        "ledger/reaper.py",
        "ledger/directory.py",
        "ledger/valkey.py",
    ),
    "h11": ("proxy/",),
    "httpcore2": ("console/",),
    "psycopg": (
        "ledger/arrays.py",
        "ledger/connection.py",
        "ledger/postgres.py",
        "ledger/directory.py",
        "ledger/migrate.py",
        "ledger/usage.py",
        "ledger/verify.py",
        "console/store/",
        "proxy/database.py",
        "proxy/state.py",
        "proxy/answers.py",
        "proxy/presence.py",
        "proxy/receipts.py",
    ),
    "glide": ("ledger/valkey.py",),
    "cryptography": (
        "proxy/sealing.py",
        "console/sessions.py",  # which kind of key was published
    ),
    "hypercorn": ("console/serve.py", "farebox/admin.py"),
    "jwt": ("console/sessions.py",),
    "fastapi": ("console/",),
    "starlette": ("console/",),
    "pydantic": ("console/",),
    "jinja2": ("console/pages/",),
    "stripe": ("console/stripe_client.py",),
    "mcp": ("console/mcp.py",),
    "prometheus_client": (
        "proxy/metrics.py",
        "proxy/figures.py",
        "proxy/tallies.py",
        "farebox/admin.py",
        "farebox/totals.py",
    ),
    "click": ("farebox/cli.py", "farebox/commands/"),
    "rich": ("farebox/",),
}

BANNED = {"asyncio", "httpcore", "httpx", "requests"}


@cache
def sources() -> tuple[tuple[str, str], ...]:
    """(path, imported top-level name) for every import of the product."""
    return tuple(_imports())


def _imports() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            path = file.relative_to(ROOT).as_posix()
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Import):
                    for alias in node.names:
                        yield path, alias.name.split(".")[0]
                elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                    yield path, node.module.split(".")[0]


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_downwards(package: str) -> None:
    found = {
        (path, name)
        for path, name in sources()
        if path.startswith(f"{package}/") and name in PACKAGES and name != package
    }
    assert {name for _, name in found} <= ALLOWED[package], sorted(found)


@pytest.mark.parametrize("library", ONLY_IN)
def test_libraries_stay_where_they_belong(library: str) -> None:
    strays = [p for p, name in sources() if name == library and not p.startswith(ONLY_IN[library])]
    assert not strays


def test_banned_modules_are_nowhere() -> None:
    assert not [(path, name) for path, name in sources() if name in BANNED]


def test_every_package_says_what_it_is() -> None:
    for package in PACKAGES:
        module = ast.parse((ROOT / package / "__init__.py").read_text())
        assert ast.get_docstring(module), package
