"""Has every setting with its default, and reads the TOML: `/etc/irmapdb.toml` or another file.

`--config` or else IRMAPDB_CONFIG names the file, also for the hook.

[scan]
paths = ["/srv"]                 # searched first, like --irmap-scan-path
hints = ["/etc", "/var/log"]     # searched next, instead of the built-in hints
skip-filesystems = ["nfs4"]      # in addition to the built-in ones
skip-paths = ["/srv/cache"]      # directories that no scan enters, unless it begins there

[hook]                           # of irmapdb-hook; the environment has precedence:
timeout = 10                     # seconds                 IRMAPDB_HOOK_TIMEOUT
paused-timeout = 1               # seconds in a pause      IRMAPDB_HOOK_PAUSED_TIMEOUT
strict = false                   # may fail the dump       IRMAPDB_HOOK_STRICT
db = "/var/lib/irmapdb"          # not in the work dir     IRMAPDB_HOOK_DB

[retention]                      # the rows that stay in the database
automatic = true                 # each step deletes some old rows
keep-runs = 1000                 # with the watches of each run
keep-rows = 200000               # watches of all runs; and rows of each other kind of history
stale-older-than = "30d"         # stale mappings, and changes
unused-older-than = "90d"        # live mappings without a watch

[warm]                           # of `irmapdb warm`, the service
directory = "/var/lib/irmapdb"   # a database for each container
interval = 60                    # seconds between two looks at the containers
share = 0.25                     # of one CPU, for all work on them
keep-gone = "7d"                 # databases of ended containers

[metrics]                        # of `irmapdb warm`, for Prometheus
listen = "127.0.0.1:9742"        # a loopback port, or the path of a unix socket

[fleet]                          # of `irmapdb fleet`; without a url, nothing is pushed
url = "postgresql://push@db.example.org/irmapdb"  # never with a password: see docs/fleet.md
interval = 300                   # seconds between two pushes of `irmapdb warm`
node = "worker-17"               # the name of this node; its host name if not set
cluster = "prod"
"""

from __future__ import annotations

import contextlib
import math
import os
from datetime import timedelta

from irmapdb import files
from irmapdb.errors import ConfigError, FileError
from irmapdb.model import is_fuse, printable, printable_text
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from collections.abc import Mapping as MappingABC
    from typing import Any

    from irmapdb.model import AnyPath

__all__ = [
    "DEFAULT_PATH",
    "HINTS",
    "UNWALKED_FILESYSTEMS",
    "Config",
    "FleetConfig",
    "HookConfig",
    "ListenAddress",
    "MetricsConfig",
    "Retention",
    "WarmConfig",
    "load_config",
    "path_in",
    "with_environment",
]

DEFAULT_PATH = b"/etc/irmapdb.toml"
_LIMIT_BYTES = 1 << 20
_SOCKET_BYTES = 107
"""sun_path of unix(7), without its NUL."""
_LOOPBACK = {"127.0.0.1": "127.0.0.1", "localhost": "127.0.0.1", "[::1]": "::1"}
_ADVICE = "name a TOML file"

HINTS = (
    b"/etc",
    b"/var/spool",
    b"/var/log",
    b"/usr/share/dbus-1/services",
    b"/usr/share/dbus-1/system-services",
    b"/var/lib/polkit-1/localauthority",
    b"/usr/share/polkit-1/actions",
    b"/lib/udev",
)
"""Usual places of watches: the hints of CRIU's criu/irmap.c, without the root itself, which needs
no walk."""

UNWALKED_FILESYSTEMS = frozenset(
    {
        "9p",
        "afs",
        "autofs",
        "ceph",
        "cifs",
        "coda",
        "gfs2",
        "glusterfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "ocfs2",
        "smb3",
        "virtiofs",
        "vboxsf",
    }
)
"""Not walked unless the user names a path there: a lookup may wait for another machine or program.
Every `fuse` type counts as one of them."""


class HookConfig(Record):
    """The settings of CRIU's action script; the defaults apply without a `[hook]`."""

    timeout_s: float = 10.0
    """The time limit. The proved paths are written before it ends."""
    timeout_is_set: bool = False
    """Whether the user has set it. Else it grows with the number of watches."""
    paused_timeout_s: float = 1.0
    """If the tasks are paused: after this time no directory is walked or opened."""
    strict: bool = False
    """Whether an error of ours fails CRIU's dump."""
    db: AnyPath | None = None
    """A directory with a database for each container. None: irmap.db in the work dir."""


class Retention(Record):
    """The limits of old rows in the database; the defaults apply without a `[retention]`."""

    automatic: bool = True
    """Whether each pre-dump and dump deletes some old rows."""
    keep_runs: int = 1000
    """The number of newest runs that are kept, with their watches."""
    keep_rows: int = 200_000
    """The limit for watches of all runs, for changes, and for mappings that are not in use."""
    stale_older_than: timedelta = timedelta(days=30)
    """The time for which stale mappings and changes are kept."""
    unused_older_than: timedelta = timedelta(days=90)
    """The time for which live mappings without a watch are kept."""


class WarmConfig(Record):
    """The settings of `irmapdb warm`; the defaults apply without a `[warm]`."""

    directory: AnyPath = b"/var/lib/irmapdb"
    """The directory with a database for each container; the hook reads it too."""
    interval_s: float = 60.0
    """The seconds between two looks at the containers."""
    share: float = 0.25
    """The share of one CPU for all work that the looks find."""
    keep_gone: timedelta = timedelta(days=7)
    """The time for which databases of ended containers are kept."""


class ListenAddress(Record):
    """An address of this machine: a unix socket, or a loopback port."""

    path: str = ""
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        if self.path:
            return printable_text(self.path)
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class MetricsConfig(Record):
    """The settings of the service's metrics; the defaults apply without a `[metrics]`."""

    listen: ListenAddress | None = None
    """None: the service serves no metrics."""


class FleetConfig(Record):
    """The settings of `irmapdb fleet`; the defaults apply without a `[fleet]`."""

    url: str | None = None
    """The server. None: the service does not push."""
    interval_s: float = 300.0
    """The seconds between two pushes of the service."""
    node: str | None = None
    """The name of this node; None: its host name."""
    cluster: str | None = None


class Config(Record):
    """All settings of the file; the defaults apply without a file."""

    scan_paths: tuple[bytes, ...] = ()
    hints: tuple[bytes, ...] = HINTS
    skip_filesystems: frozenset[str] = UNWALKED_FILESYSTEMS
    skip_paths: tuple[bytes, ...] = ()
    """Directories that no scan enters, as seen from the root of the tasks. A scan path at or below
    one has precedence."""
    hook: HookConfig = HookConfig()
    retention: Retention = Retention()
    warm: WarmConfig = WarmConfig()
    metrics: MetricsConfig = MetricsConfig()
    fleet: FleetConfig = FleetConfig()

    def walkable(self, fstype: str) -> bool:
        """Whether a filesystem may be walked if the user has not named it."""
        return fstype not in self.skip_filesystems and not is_fuse(fstype)


def _listen_address(value: object, where: str) -> ListenAddress:
    if isinstance(value, str) and value.startswith("/"):
        if len(os.fsencode(value)) <= _SOCKET_BYTES and "\0" not in value:
            return ListenAddress(path=value)
        message = f"{where}: the path of a socket has at most {_SOCKET_BYTES} bytes, and no NUL"
        raise ConfigError(message, advice="choose another path")
    host, colon, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    if colon and host in _LOOPBACK and port.isascii() and port.isdecimal() and len(port) <= 5:  # noqa: PLR2004 digits
        number = int(port)
        if 0 < number < 1 << 16:
            return ListenAddress(host=_LOOPBACK[host], port=number)
    message = f"{where}: {value!r} is no address of this machine alone"
    advice = 'write "127.0.0.1:9742", "[::1]:9742", or the absolute path of a socket'
    raise ConfigError(message, advice=advice)


def _text(value: object, where: str) -> str:
    # It may be a URL with a password, which no message repeats.
    if not isinstance(value, str) or not value or not value.isprintable():
        message = f"{where} is no text of printable characters"
        raise ConfigError(message, advice="write it between quotes, or leave the line out")
    return value


def _share(value: object, where: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0.01 <= value <= 64:  # noqa: PLR2004 of one CPU, up to 64 of them
        return float(value)
    message = f"{where}: {value!r} is no share of a CPU"
    raise ConfigError(message, advice="give a number from 0.01 to 64; 1 is one whole CPU")


def _truth(value: object, where: str) -> bool:
    if not isinstance(value, bool):
        message = f"{where} is neither true nor false"
        raise ConfigError(message, advice="write true or false, without quotes")
    return value


def _number(value: object, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        message = f"{where}: {value!r} is no number to keep"
        raise ConfigError(message, advice="give a whole number above 0")
    return value


def _span(value: object, where: str) -> timedelta:
    if not isinstance(value, str):
        raise ConfigError(f"{where}: {value!r} is no span of time", advice='write it as "30d"')
    from irmapdb.durations import parse_duration  # noqa: PLC0415 not in most files

    try:
        return parse_duration(value)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _strings(value: object, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{where} is not a list of strings", advice='write it as ["…", "…"]')
    return value


def _filesystems(value: object, where: str) -> frozenset[str]:
    return UNWALKED_FILESYSTEMS.union(_strings(value, where))


def _paths(value: object, where: str) -> tuple[bytes, ...]:
    paths = tuple(map(os.fsencode, _strings(value, where)))
    for path in paths:
        if not path.startswith(b"/"):
            message = f"{where}: '{printable(path)}' is not absolute"
            raise ConfigError(message, advice="write it as seen from the root of the tasks")
        if b"\0" in path:
            message = f"{where}: '{printable(path)}' has a NUL byte"
            raise ConfigError(message, advice="no path has one")
    return paths


def _skip_paths(value: object, where: str) -> tuple[bytes, ...]:
    paths = _paths(value, where)
    for path in paths:
        if not os.path.normpath(path).strip(b"/"):
            message = f"{where}: '{printable(path)}' is the root"
            advice = "no scan would find a file: name directories below it"
            raise ConfigError(message, advice=advice)
    return paths


def _seconds(value: object, where: str) -> float:
    seconds = 0.0
    # A bool is an int to Python, but no number of seconds.
    if isinstance(value, int | float) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            seconds = float(value)
    if not 0 < seconds < math.inf:
        message = f"{where}: {value!r} is no number of seconds"
        raise ConfigError(message, advice="give a number above 0")
    return seconds


def _seconds_in(text: str, where: str) -> float:
    try:
        return _seconds(float(text), where)
    except ValueError:
        return _seconds(text, where)


def _directory(value: object, where: str) -> bytes:
    if not isinstance(value, str) or not value.startswith("/"):
        message = f"{where}: {value!r} is no absolute path"
        raise ConfigError(message, advice="name a directory; it is made where it is missing")
    return os.fsencode(value)


_TRUTHS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def _truth_in(text: str, where: str) -> bool:
    if text.lower() not in _TRUTHS:
        raise ConfigError(f"{where} is {text!r}", advice="set it to 1 or 0")
    return _TRUTHS[text.lower()]


# By table of the file: the field of each entry, and how its value is read.
_ENTRIES: dict[str, dict[str, tuple[str, Callable[[object, str], Any]]]] = {
    "scan": {
        "paths": ("scan_paths", _paths),
        "hints": ("hints", _paths),
        "skip-filesystems": ("skip_filesystems", _filesystems),
        "skip-paths": ("skip_paths", _skip_paths),
    },
    "hook": {
        "timeout": ("timeout_s", _seconds),
        "paused-timeout": ("paused_timeout_s", _seconds),
        "strict": ("strict", _truth),
        "db": ("db", _directory),
    },
    "retention": {
        "automatic": ("automatic", _truth),
        "keep-runs": ("keep_runs", _number),
        "keep-rows": ("keep_rows", _number),
        "stale-older-than": ("stale_older_than", _span),
        "unused-older-than": ("unused_older_than", _span),
    },
    "metrics": {
        "listen": ("listen", _listen_address),
    },
    "fleet": {
        "url": ("url", _text),
        "interval": ("interval_s", _seconds),
        "node": ("node", _text),
        "cluster": ("cluster", _text),
    },
    "warm": {
        "directory": ("directory", _directory),
        "interval": ("interval_s", _seconds),
        "share": ("share", _share),
        "keep-gone": ("keep_gone", _span),
    },
}
_VARIABLES: dict[str, tuple[str, Callable[[str, str], Any]]] = {
    "IRMAPDB_HOOK_TIMEOUT": ("timeout_s", _seconds_in),
    "IRMAPDB_HOOK_PAUSED_TIMEOUT": ("paused_timeout_s", _seconds_in),
    "IRMAPDB_HOOK_STRICT": ("strict", _truth_in),
    "IRMAPDB_HOOK_DB": ("db", _directory),
}


def load_config(path: AnyPath | None = None) -> Config:
    """Read the configuration. ConfigError names the file and the entry.

    Without `path`, `/etc/irmapdb.toml`, which may be missing; a named file may not.
    """
    source: AnyPath = DEFAULT_PATH if path is None else path
    try:
        text = files.read_if_there(source, limit_bytes=_LIMIT_BYTES)
    except FileError as error:
        raise ConfigError(error.message, advice=_ADVICE, remedy="configuration") from error
    if text is None:
        if path is None:
            return Config()
        message = f"{printable(source)}: no such file"
        raise ConfigError(message, advice=_ADVICE, remedy="configuration")
    import tomllib  # noqa: PLC0415 most machines have no such file

    try:
        document = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        message = f"{printable(source)}: not TOML: {error}"
        raise ConfigError(message, advice="mend that line, or move the file away") from error
    return _config(document, printable(source))


def _config(document: dict[str, Any], source: str) -> Config:
    _refuse_unknown(document, _ENTRIES, source, "")
    found: dict[str, dict[str, Any]] = {table: {} for table in _ENTRIES}
    for table, entries in document.items():
        if not isinstance(entries, dict):
            raise ConfigError(f"{source}: {table} is not a table", advice=f"write [{table}]")
        known = _ENTRIES[table]
        _refuse_unknown(entries, known, source, f"{table}.")
        for name, value in entries.items():
            field, read = known[name]
            found[table][field] = read(value, f"{source}: {name}")
    return Config(
        **found["scan"],
        hook=_hook(HookConfig(), found["hook"]),
        retention=Retention(**found["retention"]),
        warm=WarmConfig(**found["warm"]),
        metrics=MetricsConfig(**found["metrics"]),
        fleet=FleetConfig(**found["fleet"]),
    )


def _hook(base: HookConfig, found: dict[str, Any]) -> HookConfig:
    is_set = base.timeout_is_set or "timeout_s" in found
    return base._replace(**found, timeout_is_set=is_set)


def path_in(environment: MappingABC[str, str]) -> bytes | None:
    """The file that IRMAPDB_CONFIG names; None if it is not set, or empty.

    ConfigError for a relative path: the hook's cwd is CRIU's work dir, where others may write.
    """
    text = environment.get("IRMAPDB_CONFIG", "")
    if text and not text.startswith("/"):
        raise ConfigError(f"IRMAPDB_CONFIG is {text!r}", advice="give the hook an absolute path")
    return os.fsencode(text) or None


def with_environment(hook: HookConfig, environment: MappingABC[str, str]) -> HookConfig:
    """The values of the variables IRMAPDB_HOOK_…, which replace those of the file; "" sets nothing.

    They are TIMEOUT, PAUSED_TIMEOUT, STRICT and DB. ConfigError names the variable.
    """
    found = {
        field: read(text, name)
        for name, (field, read) in _VARIABLES.items()
        if (text := environment.get(name))
    }
    return _hook(hook, found)


def _refuse_unknown(entries: Iterable[str], known: Iterable[str], source: str, prefix: str) -> None:
    for name in entries:
        if name in known:
            continue
        import difflib  # noqa: PLC0415

        close = difflib.get_close_matches(name, known, n=1)
        advice = (
            f"did you mean {prefix}{close[0]}?" if close else f"known: {', '.join(sorted(known))}"
        )
        message = f"{source}: unknown entry {prefix}{printable(name.encode())}"
        raise ConfigError(message, advice=advice)
