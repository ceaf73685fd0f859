"""Real sockets at their awkward moments."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys

import pytest

from proxy.transport import SocketTransport

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


async def test_saying_the_end_to_a_peer_that_reset_leaves_a_transport_that_can_be_read() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        client = socket.create_connection(listening.getsockname())
        accepted, _ = listening.accept()
    transport = SocketTransport(accepted)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    client.close()
    transport.send_eof()
    with pytest.raises(ConnectionResetError):
        await transport.receive()
    transport.close()
    transport.close()


async def test_of_a_closed_transport_nothing_is_heard_however_often_it_is_asked() -> None:
    ours, theirs = socket.socketpair()
    transport = SocketTransport(ours)
    transport.close()
    for _ in range(2):
        with pytest.raises(OSError, match="closed"):
            await transport.receive()
        with pytest.raises(OSError, match="descriptor"):
            await transport.send(b"x")
    theirs.close()


def test_what_a_system_lacks_of_socket_options_is_left_out() -> None:
    """As on a Mac, which has another word for one of them and none for the other."""
    lacking = "import trio, socket; del socket.TCP_USER_TIMEOUT, socket.TCP_KEEPIDLE; "
    found = subprocess.run(
        [sys.executable, "-c", f"{lacking}import proxy.listener as l; print(len(l._OPTIONS))"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (found.stdout, found.returncode) == ("1\n", 0), found.stderr
