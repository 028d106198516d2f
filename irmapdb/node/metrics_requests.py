"""Serves the figures of this machine over HTTP, on a unix socket or a loopback port.

The service itself only forks a child when a client connects: the child accepts, reads and answers,
at idle priority and with a time limit. There is one such child at a time, and at most one in a
second. So a client can neither delay the service nor make it work more than that.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import time
from importlib import import_module
from pathlib import Path

from irmapdb.errors import FileError
from irmapdb.log import Log
from irmapdb.model import printable
from irmapdb.node.state import METRICS, VERDICTS
from irmapdb.ownership import open_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from irmapdb.config import ListenAddress
    from irmapdb.node.check_all import NodeCheck
    from irmapdb.node.pool import Ended
    from irmapdb.node.state import State

__all__ = ["MetricsRequests", "open_listener"]

_log = Log(__name__)

_BACKLOG = 8
_LIMIT_S = 15.0
_VERDICTS_LIMIT_S = 120.0
_CONTAINER_S = 5.0
"""The time for the prediction for one container."""
_MEMORY_BYTES = 1 << 30
_VERDICTS_MEMORY_BYTES = 2 << 30
_PAUSE_S = 1.0
"""The least time between two children."""
_PAUSE_FACTOR = 4.0
"""The same as a multiple of the CPU time of the last child: all of them use a fifth of a CPU."""
_OLD_S = 300.0
"""The prediction for all containers is made again after this time, if a client asks."""


def open_listener(address: ListenAddress) -> socket.socket:
    """A socket that listens there. FileError if that is not possible.

    A socket that an ended service left is replaced; another file is not.
    """
    family = socket.AF_UNIX if address.path else socket.AF_INET
    if ":" in address.host:
        family = socket.AF_INET6
    listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if address.path:
            _check_directory(address.path)
            _remove_socket(address.path)
            before = os.umask(0o177)
            try:
                listener.bind(address.path)
            finally:
                os.umask(before)
        else:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((address.host, address.port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        message = f"cannot listen on {address}: {error.strerror or error}"
        raise FileError(message, advice="choose another `listen` in [metrics]") from error
    except FileError:
        listener.close()
        raise
    return listener


def _check_directory(path: str) -> None:
    # Another user could replace the socket there, and answer in our place.
    with open_directory(os.fsencode(os.path.dirname(path))) as found:
        if found.shared_with:
            message = f"cannot listen on {printable(Path(path))}: {found.shared_with}"
            raise FileError(message, advice="choose another `listen` in [metrics]")


def _remove_socket(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            message = f"{printable(Path(path))} is there, and is no socket"
            raise FileError(message, advice="choose another `listen` in [metrics]")
        os.unlink(path)
    except FileNotFoundError:
        return


class MetricsRequests:
    """Starts the children that answer."""

    def __init__(self, state: State, status: Callable[[], dict[str, Any]]) -> None:
        self._state = state
        self._status = status
        self._listener: socket.socket | None = None
        self._next_s = 0.0
        self._check: NodeCheck | None = None
        self._checked_s = -_OLD_S

    def open(self) -> None:
        """Listen, if the configuration names an address. FileError."""
        address = self._state.options.config.metrics.listen
        if address is not None:
            # Once here, and not in each child.
            for module in ("exposition", "metrics", "metrics_clients"):
                import_module(f"irmapdb.node.{module}")
            self._listener = open_listener(address)

    def close(self) -> None:
        """Listen no more."""
        if self._listener is None:
            return
        self._listener.close()
        address = self._state.options.config.metrics.listen
        if address is not None and address.path:
            with contextlib.suppress(OSError):
                os.unlink(address.path)

    def forget(self) -> None:
        """Close the socket in a child that does not answer clients."""
        if self._listener is not None:
            self._listener.close()

    def sources(self) -> dict[int, Callable[[], None]]:
        """The descriptor to wait for; none while a child answers, or right after that."""
        if self._listener is None or self._state.pool.count(METRICS):
            return {}
        return {self._listener.fileno(): self._start} if time.monotonic() >= self._next_s else {}

    def wait_s(self) -> float | None:
        """The time until `sources` may have more; None: not by time."""
        left_s = self._next_s - time.monotonic()
        return left_s if self._listener is not None and left_s > 0 else None

    def _start(self) -> None:
        try:
            self._state.pool.start(
                METRICS,
                None,
                self._serve,
                limit_s=_LIMIT_S,
                memory_bytes=_MEMORY_BYTES,
            )
        except OSError as error:
            _log.warning("metrics: no child: %s", error.strerror)
        self._next_s = time.monotonic() + _PAUSE_S
        if time.monotonic() - self._checked_s >= _OLD_S and not self._state.pool.count(VERDICTS):
            self._start_check()

    def take(self, ended: Ended) -> None:
        """A child that answered clients has ended."""
        self._next_s = time.monotonic() + max(_PAUSE_S, ended.cpu_s * _PAUSE_FACTOR)

    # --- the prediction ---------------------------------------------------------------------------

    def _start_check(self) -> None:
        self._checked_s = time.monotonic()
        options = self._state.options

        def check() -> NodeCheck:
            from irmapdb.node.check_all import NodeCheckOptions, check_all  # noqa: PLC0415

            return check_all(
                NodeCheckOptions(
                    config=options.config,
                    cgroup=options.cgroup,
                    patience_s=_CONTAINER_S,
                    workers=1,
                )
            )

        with contextlib.suppress(OSError):
            self._state.pool.start(
                VERDICTS,
                None,
                check,
                limit_s=_VERDICTS_LIMIT_S,
                memory_bytes=_VERDICTS_MEMORY_BYTES,
            )

    def take_check(self, ended: Ended) -> None:
        """The prediction for all containers is there, or failed."""
        self._check = ended.result
        if ended.why:
            _log.warning("metrics: check: %s", ended.why)

    # --- in the child -----------------------------------------------------------------------------

    def _serve(self) -> None:
        from irmapdb.node.exposition import CONTENT_TYPE, exposition  # noqa: PLC0415
        from irmapdb.node.metrics import MetricsOptions, collect  # noqa: PLC0415
        from irmapdb.node.metrics_clients import serve  # noqa: PLC0415

        def text() -> bytes:
            options = self._state.options
            return exposition(
                collect(
                    MetricsOptions(
                        self._state.run.path,
                        options.config,
                        options.cgroup,
                        self._status(),
                        self._check,
                    )
                )
            )

        assert self._listener is not None  # noqa: S101 a client has connected
        serve(self._listener, text, CONTENT_TYPE)
