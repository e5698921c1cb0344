"""Writes into another process's memory over TCP: the part of mooncake's TransferEngine SGLang uses.

Mooncake's own needs libibverbs even where its TCP transport is chosen, and comes as 46 MB. With
this in its place SGLang's scheduler loops, queues, bootstrap server and KV managers for
prefill/decode disaggregation run unchanged. Owns the bytes on the wire, and nothing else:
a frame is (address, length) and the bytes; one zero byte answers it once they are in place.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import threading
from collections.abc import Sequence
from contextlib import suppress

_FRAME = struct.Struct("!QQ")


class TransferEngine:
    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    def initialize(self, hostname: str, metadata: str, protocol: str, device: str) -> int:
        from sglang.srt.disaggregation.mooncake.conn import MooncakeKVSender

        # Else the prefill side copies page numbers with a CUDA event, whatever its device is.
        MooncakeKVSender.supports_host_tensor_indices = False
        return 0

    def get_rpc_port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    def batch_register_memory(self, addresses: Sequence[int], lengths: Sequence[int]) -> int:
        return 0

    def batch_unregister_memory(self, addresses: Sequence[int]) -> int:
        return 0

    def transfer_sync_write(self, session: str, source: int, target: int, length: int) -> int:
        return self.batch_transfer_sync_write(session, [source], [target], [length])

    def batch_transfer_sync_write(
        self, session: str, sources: Sequence[int], targets: Sequence[int], lengths: Sequence[int]
    ) -> int:
        """0 once everything is in the memory of the engine that listens at `session`."""
        host, port = session.rsplit(":", 1)
        with socket.create_connection((host, int(port))) as peer:
            for source, target, length in zip(sources, targets, lengths, strict=True):
                peer.sendall(_FRAME.pack(target, length) + ctypes.string_at(source, length))
                if peer.recv(1) != b"\0":
                    return -1
        return 0

    def _accept(self) -> None:
        while True:
            peer, _ = self._listener.accept()
            threading.Thread(target=self._receive, args=(peer,), daemon=True).start()

    def _receive(self, peer: socket.socket) -> None:
        with peer, suppress(EOFError):
            while True:
                target, length = _FRAME.unpack(_exactly(peer, _FRAME.size))
                ctypes.memmove(target, _exactly(peer, length), length)
                peer.sendall(b"\0")


def _exactly(peer: socket.socket, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        part = peer.recv(count - len(received))
        if not part:
            raise EOFError
        received += part
    return bytes(received)
