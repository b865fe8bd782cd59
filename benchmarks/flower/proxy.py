"""A TCP proxy on the loopback that counts the bytes each way."""

from __future__ import annotations

import contextlib
import socket
import threading


class CountingProxy:
    """Forwards connections to `port` on 127.0.0.1 and counts: `up` from those who connect, `down` to them.

    Bytes of the TCP streams, HTTP's own included, packet headers not. `close` ends it; connections end with it.
    """

    def __init__(self, port: int) -> None:
        self.up = self.down = 0
        self._target = port
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop listening, and cut what is open."""
        with self._lock:
            sockets = [self._server, *self._open]
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:  # closed
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            with self._lock:
                self._open |= {near, far}
            threading.Thread(target=self._pump, args=(near, far, True), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, False), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, upwards: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
                with self._lock:
                    if upwards:
                        self.up += len(data)
                    else:
                        self.down += len(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)  # the other direction may still have something to say
