"""Ports for servers that are started later.

Below those that the kernel gives to whoever asks for any (`ip_local_port_range`): of those, each
connection of another test that runs beside takes one, and a server may find its own taken.
"""

import random
import socket

_FIRST, _LAST = 10_240, 32_000
_given: set[int] = set()


def free_port(address: str = "127.0.0.1", kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """Another one at each call, which nobody has at that address."""
    while True:
        # Of the system's chance: other processes of tests take theirs.
        port = random.SystemRandom().randint(_FIRST, _LAST)
        if port in _given:
            continue
        with socket.socket(socket.AF_INET, kind) as probe:
            try:
                probe.bind((address, port))
            except OSError:
                continue
        _given.add(port)
        return port
