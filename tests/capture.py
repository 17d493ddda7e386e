"""What goes by on a network device of this machine, searched for texts. It takes root."""

import socket
import struct
import threading
from types import TracebackType

# linux/if_packet.h, linux/if_ether.h, asm-generic/socket.h
_ALL_PROTOCOLS = 0x0003
_SOL_PACKET = 263
_ADD_MEMBERSHIP, _STATISTICS = 1, 6
_PROMISCUOUS = 1
_RECEIVE_BUFFER_FORCE = 33
_BUFFER_BYTES = 128 << 20
_MOST_BYTES = 1 << 17
_LOOK_AGAIN_S = 0.2


class Capture:
    """Captures while it is open.

    A text that two packets share is not found: look for one that a stream has many times.

    Args:
        keep: all packets, to be searched for what is not known before.

    Attributes:
        bytes: of all packets.
        found: how many packets had each of the texts.
        kept: the packets, one after another.
    """

    def __init__(self, device: str, *texts: bytes, keep: bool = False) -> None:
        self._texts = texts
        self._keep = keep
        self._socket = socket.socket(
            socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS)
        )
        self._socket.setsockopt(socket.SOL_SOCKET, _RECEIVE_BUFFER_FORCE, _BUFFER_BYTES)
        self._socket.bind((device, _ALL_PROTOCOLS))
        # A bridge shows what goes from port to port to nobody else.
        membership = struct.pack("iHH8x", socket.if_nametoindex(device), _PROMISCUOUS, 0)
        self._socket.setsockopt(_SOL_PACKET, _ADD_MEMBERSHIP, membership)
        self._socket.settimeout(_LOOK_AGAIN_S)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._read, name="capture", daemon=True)
        self.bytes = 0
        self.found = dict.fromkeys(texts, 0)
        self.kept = bytearray()

    def __enter__(self) -> "Capture":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stopping.set()
        self._thread.join()
        _, dropped = struct.unpack("II", self._socket.getsockopt(_SOL_PACKET, _STATISTICS, 8))
        self._socket.close()
        if kind is None:
            assert dropped == 0, f"{dropped} packets were not looked at"

    def _read(self) -> None:
        while True:
            try:
                packet = self._socket.recv(_MOST_BYTES)
            except TimeoutError:
                if self._stopping.is_set():
                    return
                continue
            self.bytes += len(packet)
            if self._keep:
                self.kept += packet
            for text in self._texts:
                self.found[text] += text in packet
