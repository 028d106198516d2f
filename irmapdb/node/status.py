"""Reports the state of the service: to people as a JSON document, and to systemd.

The document is that of `irmapdb warm --status`. systemd gets a datagram to the socket in
NOTIFY_SOCKET, sd_notify(3).
"""

from __future__ import annotations

import contextlib
import os
import socket
import time

from irmapdb.model import format_kdev

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from irmapdb.kernel.proc.containers import Container
    from irmapdb.node.keep import Kept
    from irmapdb.node.look import Seen

__all__ = ["notify", "status_document"]


def status_document(
    known: Iterable[tuple[Container, Seen | None, Kept | None, str]],
    *,
    begun_at_s: float,
    interval_s: float,
    looks: int,
    answered: Mapping[int, int],
    cpu_s: float,
    push: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The contract of `irmapdb warm --status --json`; docs/warm.md describes it.

    Times are seconds since the epoch, spans are seconds.
    """
    return {
        "version": 1,
        "begun_at": begun_at_s,
        "written_at": time.time(),
        "interval_s": interval_s,
        "looks": looks,
        "answered": {
            "done": answered.get(0, 0),
            "left_to_the_hook": sum(answered.values()) - answered.get(0, 0),
        },
        "cpu_s": round(cpu_s, 3),
        "push": None if push is None else dict(push),
        "containers": [_container(*one) for one in known],
    }


def _container(
    container: Container, seen: Seen | None, kept: Kept | None, problem: str
) -> dict[str, Any]:
    return {
        "id": container.name.id,
        "database": f"{container.name.file_stem}.db",
        "pid": container.pid,
        "starttime": container.starttime,
        "tasks": len(container.pids),
        "cgroups": list(container.cgroups),
        "state": _state(seen, kept, problem),
        "watches": kept.watches if kept else (seen.watches if seen else 0),
        "resolved": kept.resolved if kept else 0,
        "proved_at": kept.proved_at_s if kept else None,
        "took_s": round(kept.took_s, 3) if kept else None,
        "no_path": [
            {
                "pid": one.pid,
                "fd": one.fd,
                "kind": one.kind,
                "comm": one.comm,
                "dev": format_kdev(one.kdev),
                "ino": one.ino,
                "why": one.why,
            }
            for one in (kept.no_path if kept else ())
        ],
        "problem": problem,
    }


def _state(seen: Seen | None, kept: Kept | None, problem: str) -> str:
    # `ready`: nothing has changed since the proof; `changed`: it waits for work.
    if kept is None:
        return "failed" if problem else "new"
    if seen is not None and seen.digest != kept.digest:
        return "changed"
    return "ready"


def notify(state: str) -> None:
    """Notify the service manager, if one has started us."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0)
        sock.sendto(state.encode(), address)
