"""Real sockets at their awkward moments."""

from __future__ import annotations

import socket
import struct

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
