"""Unix sockets between the gateway's own processes, opened by the one that outlives the others."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

_PATH_BYTES_MAX = 100  # of a unix socket; the kernels' limits are 107 and 103
_BACKLOG = 1024


@contextmanager
def unix_sockets(
    directory: Path, names: Sequence[str]
) -> Iterator[list[tuple[Path, socket.socket]]]:
    """Listening sockets with these names, each with its path; for this user alone.

    They lie in `directory`, or in a temporary one where that path is too long for the kernel.
    """
    files = [f"{name}.sock" for name in names]
    with ExitStack() as stack:
        if any(len(os.fsencode(directory / file)) > _PATH_BYTES_MAX for file in files):
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="farebox-")))
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        yield [stack.enter_context(_unix_socket(directory / file)) for file in files]


@contextmanager
def _unix_socket(path: Path) -> Iterator[tuple[Path, socket.socket]]:
    path.unlink(missing_ok=True)  # of a predecessor that was killed
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        path.chmod(0o600)
        listening.listen(_BACKLOG)
        try:
            yield path, listening
        finally:
            path.unlink(missing_ok=True)
