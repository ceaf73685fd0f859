"""The server's secret: 32 random bytes that key the hashes of API keys. Made at first start."""

from __future__ import annotations

import os
import secrets
import string
import tempfile
from collections.abc import Mapping
from pathlib import Path

from farebox.config import Config, ConfigError, resolve

SECRET_BYTES = 32


def ensure_secret(config: Config, environ: Mapping[str, str]) -> bytes:
    """The 32 bytes behind `server.secret`; a file that does not exist yet is made, mode 0600.

    Safe to call from several processes at once: they all get the same bytes. Whoever loses the
    secret loses every API key, so a malformed one is refused, never replaced. Raises ConfigError.
    """
    path = _path(config)
    if path is not None and not path.exists():
        _create(path)
    return _read(config, environ)


def find_secret(config: Config, environ: Mapping[str, str]) -> bytes | None:
    """As `ensure_secret`, but a file that does not exist yet is not made: there is none then."""
    path = _path(config)
    return None if path is not None and not path.exists() else _read(config, environ)


def _reference(config: Config) -> str:
    return config.server.secret or f"file:{config.data_dir / 'secret'}"


def _path(config: Config) -> Path | None:
    """The file of the secret, where it is in one."""
    reference = _reference(config)
    if not reference.startswith("file:"):
        return None
    return config.root / reference.removeprefix("file:")


def _read(config: Config, environ: Mapping[str, str]) -> bytes:
    try:
        text = resolve(_reference(config), config.root, environ).strip()
    except ValueError as error:
        raise ConfigError([f"server.secret: {error}"]) from None
    if len(text) != 2 * SECRET_BYTES or not set(text) <= set(string.hexdigits):
        raise ConfigError(
            [
                f"server.secret: expected {2 * SECRET_BYTES} hexadecimal digits; "
                'make them with "openssl rand -hex 32"'
            ]
        )
    return bytes.fromhex(text)


def _create(path: Path) -> None:
    """Write a new secret to `path` whole or not at all; whoever links first has made it."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=".secret-")  # mode 0600
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(SECRET_BYTES) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, path)
        except FileExistsError:
            return
        finally:
            Path(draft).unlink()
    except OSError as error:
        raise ConfigError(
            [f"server.secret: cannot write {path}: {error.strerror}; check the folder's owner"]
        ) from None
