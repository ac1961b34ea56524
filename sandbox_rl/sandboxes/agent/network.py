"""The way out, where there is one: the agent listens inside and hands the listener to the host.

What connects to it inside is accepted outside, by the filtering proxy. Nothing of the host's network is
in the sandbox, and the proxy knows whose connection it has.
"""

from __future__ import annotations

import posix as os
import sys

PROXY_PORT = 3128
BACKLOG = 64
LISTENER_SENT = b"L"


def hand_out_listener(handover: str, reader: int) -> None:
    """Listen on the sandbox's own loopback and send the listener to the host.

    Args:
        handover: path of a unix socket of the host's; "-" for the descriptor that requests come from.

    Raises:
        OSError: the socket is closed.
    """
    import _socket as socket

    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("127.0.0.1", PROXY_PORT))
    listener.listen(BACKLOG)
    if handover == "-":
        way = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, os.dup(reader))
    else:
        way = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        way.connect(handover)
    rights = listener.fileno().to_bytes(4, sys.byteorder)
    way.sendmsg([LISTENER_SENT], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
    way.close()
    listener.close()
