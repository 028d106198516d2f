"""Writes the systemd unit of the service.

Sources: systemd.service(5), systemd.exec(5), systemd.resource-control(5), sd_booted(3).
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from irmapdb import files
from irmapdb.errors import FileError
from irmapdb.model import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "CAPABILITIES",
    "UNIT_DIRECTORY",
    "UNIT_NAME",
    "install",
    "systemd_runs",
    "uninstall",
    "unit_text",
]

UNIT_DIRECTORY = Path("/etc/systemd/system")
UNIT_NAME = "irmapdb-warm.service"

CAPABILITIES = ("CAP_DAC_READ_SEARCH", "CAP_SYS_ADMIN", "CAP_SYS_PTRACE")
"""CAP_DAC_READ_SEARCH opens handles, CAP_SYS_ADMIN gives reports of renames, CAP_SYS_PTRACE reads
tasks of other users, their roots and descriptors."""

_FIRST_LINE = "# Made by `irmapdb warm --install`, which `--uninstall` undoes."
_LIMIT_BYTES = 1 << 20
_BOOTED = Path("/run/systemd/system")

_TEMPLATE = """\
{first_line}
[Unit]
Description=Paths of inotify and fanotify watches, kept ready for CRIU
After=local-fs.target

[Service]
Type=notify
ExecStart={command}
Restart=on-failure
RestartSec=5
RuntimeDirectory=irmapdb
RuntimeDirectoryMode=0700
RuntimeDirectoryPreserve=yes
StateDirectory=irmapdb
StateDirectoryMode=0700
UMask=0077

# Its share of the machine: the containers cannot raise it.
MemoryMax=4G
OOMPolicy=continue
TasksMax=64
LimitNOFILE=4096
CPUWeight=10
IOWeight=10

# It writes into CRIU's work dir through the process of CRIU, so the rest can be read-only.
CapabilityBoundingSet={capabilities}
NoNewPrivileges=yes
ProtectSystem=strict
ReadWritePaths={writable}
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
RestrictAddressFamilies={families}
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
KeyringMode=private
{addresses}SystemCallArchitectures=native
SystemCallFilter=~@clock @cpu-emulation @module @mount @obsolete @raw-io @reboot @swap

[Install]
WantedBy=multi-user.target
"""


def unit_text(
    command: Sequence[str],
    databases: Path,
    *,
    with_port: bool = False,
    with_server: bool = False,
) -> str:
    """The unit that runs `command`, an absolute path and its arguments.

    `with_port`: whether the service listens on a loopback port. `with_server`: whether it pushes to
    a server, which may be anywhere.
    """
    addresses = "IPAddressDeny=any\n" + ("IPAddressAllow=localhost\n" if with_port else "")
    return _TEMPLATE.format(
        first_line=_FIRST_LINE,
        command=" ".join(map(_quoted, command)),
        capabilities=" ".join(CAPABILITIES),
        writable=_quoted(f"-{databases}"),
        families="AF_UNIX AF_INET AF_INET6" if with_port or with_server else "AF_UNIX",
        addresses="" if with_server else addresses,
    )


def install(
    command: Sequence[str],
    databases: Path,
    directory: Path = UNIT_DIRECTORY,
    *,
    with_port: bool = False,
    with_server: bool = False,
) -> Path:
    """Write the unit, and start it if systemd runs; returns its path.

    FileError if it cannot be written, or if another unit has its name.
    """
    path = directory / UNIT_NAME
    _check(path)
    text = unit_text(command, databases, with_port=with_port, with_server=with_server)
    files.replace_whole(path, text.encode(), mode=0o644)
    if directory == UNIT_DIRECTORY:
        _systemctl("daemon-reload")
        _systemctl("enable", UNIT_NAME)
        _systemctl("restart", UNIT_NAME)
    return path


def uninstall(directory: Path = UNIT_DIRECTORY) -> Path | None:
    """Stop it, and remove the unit; returns its path, or None if there was none.

    The databases stay. FileError if another unit has its name.
    """
    path = directory / UNIT_NAME
    if not _check(path):
        return None
    if directory == UNIT_DIRECTORY:
        _systemctl("disable", "--now", UNIT_NAME)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        message = f"cannot remove {printable(path)}: {error.strerror}"
        raise FileError(message, advice="run as root") from error
    if directory == UNIT_DIRECTORY:
        _systemctl("daemon-reload")
    return path


def _check(path: Path) -> bool:
    # Whether there is a unit of ours.
    text = files.read_if_there(path, limit_bytes=_LIMIT_BYTES)
    if text is None:
        return False
    if not text.startswith(_FIRST_LINE.encode()):
        raise FileError(f"{printable(path)}: not made by irmapdb", advice="move it away")
    return True


def systemd_runs() -> bool:
    """Whether `install` starts the service. Else it only writes the unit."""
    return shutil.which("systemctl") is not None and _BOOTED.is_dir()


def _systemctl(*arguments: str) -> None:
    systemctl = shutil.which("systemctl")
    if systemctl is None or not systemd_runs():
        return
    done = subprocess.run(  # noqa: S603 fixed words
        [systemctl, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        message = f"systemctl {' '.join(arguments)}: {done.stderr.strip() or 'failed'}"
        raise FileError(message, advice=f"`journalctl -u {UNIT_NAME}` shows the reason")


def _quoted(word: str) -> str:
    # systemd.syntax(7) and systemd.unit(5): `%` begins a specifier, `$` a variable.
    for special, escaped in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        word = word.replace(special, escaped)
    return f'"{word}"' if not word or any(c in word for c in " \t;'\"\\") else word
