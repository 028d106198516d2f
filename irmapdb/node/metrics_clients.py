"""Answers the clients of the metrics port, several at a time: an idle one delays no other.

Each client has a time limit for its request, and one for the answer. Every request gets the same
text, which is made for the first one.

Source: RFC 9112 for the first line of a request.
"""

from __future__ import annotations

import contextlib
import select
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

__all__ = ["serve"]

_CLIENT_S = 2.0
"""The time for a request, and for an answer."""
_ACCEPT_S = 5.0
"""The time for which one call accepts clients. The next call serves the others."""
_MOST_CLIENTS = 64
"""The largest number of clients at a time."""
_REQUEST_BYTES = 8192
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed"}


def serve(
    listener: socket.socket,
    text: Callable[[], bytes],
    content_type: str,
    *,
    client_s: float = _CLIENT_S,
) -> None:
    """Answer all clients that wait at a listener, until none is left."""
    _Clients(listener, text, content_type, client_s).serve()


class _Client:
    def __init__(self, connection: socket.socket, end_s: float) -> None:
        connection.setblocking(False)  # noqa: FBT003 its only parameter
        self.connection = connection
        self.end_s = end_s
        self.head = b""
        self.rest = memoryview(b"")
        """The part of the answer that is not sent yet; empty before the request is whole."""


class _Clients:
    def __init__(
        self,
        listener: socket.socket,
        text: Callable[[], bytes],
        content_type: str,
        client_s: float,
    ) -> None:
        self._listener = listener
        self._text = text
        self._content_type = content_type
        self._client_s = client_s
        self._body: bytes | None = None
        self._clients: dict[int, _Client] = {}
        self._accept_until_s = time.monotonic() + _ACCEPT_S

    def serve(self) -> None:
        try:
            while self._accept() or self._clients:
                ready = self._wait()
                # Before the text is made: a request may come meanwhile, and the next wait shows it.
                now_s = time.monotonic()
                for fd in ready:
                    self._go_on(fd)
                for fd, client in [*self._clients.items()]:
                    if fd not in ready and client.end_s <= now_s:
                        self._close(fd)
        finally:
            for fd in [*self._clients]:
                self._close(fd)

    def _accept(self) -> bool:
        # Whether a client has come.
        before = len(self._clients)
        with contextlib.suppress(OSError):  # no other one waits
            while self._is_open():
                connection, _address = self._listener.accept()
                end_s = time.monotonic() + self._client_s
                self._clients[connection.fileno()] = _Client(connection, end_s)
        return len(self._clients) > before

    def _is_open(self) -> bool:
        return len(self._clients) < _MOST_CLIENTS and time.monotonic() < self._accept_until_s

    def _wait(self) -> set[int]:
        # The clients that can go on. A new client ends the wait too.
        poll = select.poll()
        if self._is_open():
            poll.register(self._listener, select.POLLIN)
        for fd, client in self._clients.items():
            poll.register(fd, select.POLLOUT if client.rest else select.POLLIN)
        end_s = min(client.end_s for client in self._clients.values())
        left_s = max(0.0, end_s - time.monotonic())
        return {fd for fd, _ in poll.poll(left_s * 1000)} & self._clients.keys()

    def _go_on(self, fd: int) -> None:
        client = self._clients[fd]
        try:
            if not client.rest:
                part = client.connection.recv(_REQUEST_BYTES)
                client.head += part
                code = _code_of(client.head, is_whole=not part)
                if code is None:
                    return
                client.rest = memoryview(self._answer(code))
                client.end_s = time.monotonic() + self._client_s
            client.rest = client.rest[client.connection.send(client.rest) :]
        except BlockingIOError:
            return
        except OSError:
            self._close(fd)
            return
        if not client.rest:
            self._close(fd)

    def _answer(self, code: int) -> bytes:
        body, kind = b"see /metrics\n", "text/plain"
        if code == 200:  # noqa: PLR2004 of HTTP
            if self._body is None:
                self._body = self._text()
            body, kind = self._body, self._content_type
        head = (
            f"HTTP/1.1 {code} {_REASONS[code]}\r\n"
            f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + body

    def _close(self, fd: int) -> None:
        self._clients.pop(fd).connection.close()


def _code_of(head: bytes, *, is_whole: bool) -> int | None:
    # The code of the answer; None: more of the request is to come. The whole head is read: else the
    # kernel resets the connection.
    if b"\r\n\r\n" not in head and b"\n\n" not in head:
        return 400 if is_whole or len(head) > _REQUEST_BYTES else None
    words = head.split(b"\n", 1)[0].split()
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):  # noqa: PLR2004 a request line
        return 400
    if words[0] != b"GET":
        return 405
    return 200 if words[1].partition(b"?")[0] in {b"/metrics", b"/"} else 404
