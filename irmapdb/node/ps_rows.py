"""The data that ps lists: processes, their watches, and the users who are charged for them."""

from __future__ import annotations

from irmapdb.model import Watch, WatchKind
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from irmapdb.kernel.proc.limits import LimitKind
    from irmapdb.model import Identity, Mark
    from irmapdb.node.container_info import ContainerInfo

__all__ = ["LimitAdvice", "ProcessRow", "Usage", "WatchedPath"]


class ProcessRow(Record):
    """One process, and its inotify and fanotify descriptors."""

    pid: int
    comm: bytes
    uid: int | None
    """Its effective user, by the numbers of our user namespace."""
    instances: int
    watches: int
    groups: int
    marks: int
    shared: int
    """Descriptors of an instance or group that another descriptor has too, and that is counted for
    that one: copies by dup(2), in this process or an earlier one, or by fork(2)."""
    command: bytes = b""
    """Its command line, at most 4,096 bytes; b"" if it has none, or could not be read."""
    unit: str | None = None
    """The systemd unit, behind those that it is in; None if it is in none."""
    cgroup: str | None = None
    """The path of its cgroup; None if that is the root."""
    container: ContainerInfo | None = None
    """None if it runs in no container."""
    container_root: int | None = None
    """The root task of that container."""
    place: str = ""
    """The container or unit, as people call it."""

    @property
    def shown_command(self) -> bytes:
        """The command line, without the directories of the program.

        If it has none, the name of the task in brackets, as in ps(1).
        """
        program, blank, arguments = self.command.partition(b" ")
        name = program[program.rfind(b"/") + 1 :] if program.startswith(b"/") else program
        return name + blank + arguments or b"[%b]" % self.comm

    @property
    def sort_name(self) -> tuple[bytes, int]:
        """The key for a sort by name."""
        return self.shown_command, self.pid


class Usage(Record):
    """One account of one user."""

    uid: int | None
    """The charged user; None if that could not be read."""
    account: LimitKind
    used: int
    limit: int | None
    """None if this kernel has no such limit."""
    below: int
    """The part of it from tasks in the user's own user namespaces."""


class LimitAdvice(Record):
    """A limit that a user has nearly reached, and its new value."""

    usage: Usage
    sysctl: str
    """The sysctl to raise: `fs.inotify.max_user_watches`."""
    value: int
    """Twice the limit, or more."""

    @property
    def command(self) -> str:
        """The command that raises it until the next boot."""
        return f"sysctl -w {self.sysctl}={self.value}"


class WatchedPath(Record):
    """One watch, or one mark of a mount or filesystem, and its path."""

    watch: Watch | Mark
    comm: bytes
    path: bytes | None
    why: str | None
    """Why there is no path."""
    mntns: int = 0
    """As in Mapping: the mount namespace of the path."""
    deleted: bool = False
    """Whether the inode has no name, so that no search can find one."""

    @property
    def kind(self) -> WatchKind:
        """Of inotify or fanotify."""
        return self.watch.kind if isinstance(self.watch, Watch) else WatchKind.FANOTIFY

    @property
    def identity(self) -> Identity | None:
        """The watched inode; None for a mark of a mount or filesystem."""
        return self.watch.identity if isinstance(self.watch, Watch) else None
