"""Finds the source of each watched path at a restore: mounts, tmpfs content, changes of a root.

A restored container gets its mounts from its runtime and from CRIU. So a file below a mount is not
missing if the bare root directory lacks it. CRIU's images have the mounts of each mount namespace
(`mountpoints-N.img`) and the files of each tmpfs (`tmpfs-dev-N.tar.gz.img`, N is its device). An
engine's checkpoint has, beside them or one directory up, the changed files of the root
(`rootfs-diff.tar`), its removed files (`deleted.files`, a JSON list of paths), the files of
/dev/shm (`devshm-checkpoint.tar`) and of podman's volumes (`volumes/NAME.tar`).
"""

from __future__ import annotations

import bisect
import enum
import json
import re

from irmapdb.image.mounts import decode_ghost, decode_mounts
from irmapdb.model import printable, printable_text
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from irmapdb.archive.container import DumpedContainer, SpecMount
    from irmapdb.archive.files import CheckpointFiles
    from irmapdb.archive.layout import Inside
    from irmapdb.image.mounts import DumpedGhost, DumpedMount
    from irmapdb.model import InodeKey

__all__ = ["CHANGES", "Origin", "OriginKind", "Origins", "read_origins"]

Start = tuple[bytes, int | None]
"""A path, and the id of the mount in whose namespace it starts; None: the root task's."""

CHANGES = "rootfs-diff.tar"
"""The changed files of the root."""
_DEVSHM = "devshm-checkpoint.tar"
_LONGEST_PATH = 4096
"""The kernel shows no longer path (PATH_MAX)."""
_OF_KUBELET = b"/kubelet/pods/"
"""The volumes of a pod, below its uid, which is another one after a restore."""
_MOST_ALIKE = 8
"""The largest number of mounts with one name that are compared."""
_MAKE_SOURCES = {"cri-o", "containerd"}
"""The engines of Kubernetes make the source of a bind mount if it is missing."""
_OF_ENGINE = re.compile(rb"/(?:[a-z]+-)?(?:containers|sandboxes)/[0-9a-f]{64}/")
"""The directory of a container or pod in the files of its engine: /etc/resolv.conf of a pod is in
that of its sandbox."""


class OriginKind(enum.StrEnum):
    """The source of a path."""

    ROOT = "root"
    """The root directory, or the image of the container."""
    DIFF = "rootfs-diff"
    """The changed files of the root."""
    TMPFS = "tmpfs"
    """The content of a tmpfs, which the checkpoint has."""
    VOLUME = "volume"
    """A volume of the engine, whose content the checkpoint may have."""
    BIND = "bind"
    """A file or directory of the host, which the target host must have."""
    ENGINE = "engine"
    """A file that the engine makes for each container, or kubelet for each pod: /etc/hosts."""
    MOUNT = "mount"
    """Another mount that the restore makes: proc, sysfs, an empty tmpfs."""


class Origin(Record):
    """The source of one path in a restore."""

    kind: OriginKind
    what: str
    """For people: `the mount /data`, `tmpfs-dev-45.tar.gz.img`, `rootfs-diff.tar`."""
    has_it: bool | None
    """Whether the source has the path; None if the images do not show that."""
    why_not_told: str = ""
    source: bytes | None = None
    """Of a bind mount, or a volume without content: the watched file, as the target host must have
    it."""
    mount_source: bytes | None = None
    """The same of the mount itself; `source` is this or below it."""
    is_link: bool = False
    """Whether the source has a symbolic link there. No watch is recorded at a path that leads
    through one, so the link itself was watched."""
    is_unread: bool = False
    """Whether the source is an archive inside that was not read to its end: it is damaged, or
    beyond a limit. `why_not_told` says why."""


class Origins(Record):
    """All sources in the images of one tree."""

    has_mounts: bool
    """Whether the images have mounts. Without mounts, a restore opens no handle."""
    ghosts: dict[InodeKey, DumpedGhost]
    """Deleted files and directories that the images contain."""
    root_kdev: int | None
    """The device of the root of the root task, as it was in the dump; None without mounts."""
    by_start: dict[Start, Origin]
    """By path, and by the id of the mount in whose namespace it starts."""
    removed: frozenset[bytes]
    """The wanted paths that the engine removes from the root, after it has added `rootfs-diff.tar`:
    also the new files in a directory that the container removed and made again."""
    binds: tuple[Origin, ...]
    """The bind mounts of the container whose sources the target host must have."""
    lost_mounts: tuple[bytes, ...]
    """The mounts from outside whose sources were removed or replaced before the dump."""
    destinations: tuple[bytes, ...]
    """The mount points of the container, sorted. The runtime makes the directories above them that
    the image lacks."""

    def of(self, path: bytes, mnt_id: int | None) -> Origin | None:
        """The source of the path; None for the root, or if there is none."""
        return self.by_start.get((path, mnt_id))

    def removes(self, path: bytes) -> bool:
        """Whether the engine removes the wanted path from the root, or a directory above it."""
        return path in self.removed

    def of_parent(self, path: bytes) -> Origin | None:
        """The source of a directory above a mount, if the root lacks it; None: it is none."""
        above = path.rstrip(b"/") + b"/"
        following = bisect.bisect_left(self.destinations, above)
        below = next(iter(self.destinations[following : following + 1]), b"")
        if not below.startswith(above):
            return None
        what = f"the way to the mount {printable(below)}"
        return Origin(OriginKind.ENGINE, what, None, "the runtime makes its directories")


def read_origins(
    checkpoint: CheckpointFiles,
    container: DumpedContainer,
    wanted: Collection[Start],
    new: Collection[Start] = (),
) -> Origins:
    """The sources of the wanted paths. ImageError or FileError for an image that is damaged.

    `new`: those that the container made, in a checkpoint whose changes are a layer of an image.
    """
    mounts = _Mounts(_namespaces(checkpoint))
    below: dict[Start, DumpedMount] = {}
    for path, mnt_id in wanted:
        mount = mounts.of(path, mnt_id)
        if mount is not None:
            below[path, mnt_id] = mount
    asked = _Asked(checkpoint)
    own = _Container.of(container, mounts)
    by_mount = {start: _of_mount(start, mount, own, asked) for start, mount in below.items()}
    in_root = [start for start in wanted if start not in below]
    removed = _removed(checkpoint)
    removed = frozenset(path for path, _ in in_root if _removes(removed, path))
    rest = [start for start in in_root if start[0] not in removed]
    if checkpoint.has_inside(CHANGES):
        for start in rest:
            asked.add(CHANGES, start[0].strip(b"/"))
    answers = asked.answers()
    names = {start[0].strip(b"/") for start in rest if start in new}
    layers = checkpoint.in_layers(names) if names else ()
    by_start = {start: origin.told(answers) for start, origin in by_mount.items()}
    for start in rest:
        if start[0].strip(b"/") in layers:
            by_start[start] = Origin(OriginKind.DIFF, "a layer of the checkpoint", has_it=True)
    changed = answers.get(CHANGES)
    for start in rest if changed is not None else ():
        name = start[0].strip(b"/")
        if changed is not None and name in changed.found:
            is_link = name in changed.links
            by_start[start] = Origin(OriginKind.DIFF, CHANGES, has_it=True, is_link=is_link)
        elif changed is not None and changed.why:
            by_start[start] = Origin(OriginKind.DIFF, CHANGES, None, changed.why, is_unread=True)
    return Origins(
        mounts.are_known,
        _ghosts(checkpoint),
        mounts.root_kdev,
        by_start,
        removed,
        tuple(_binds(container)),
        mounts.lost,
        tuple(sorted(one.destination for one in container.mounts)),
    )


def _namespaces(checkpoint: CheckpointFiles) -> Sequence[Sequence[DumpedMount]]:
    found = []
    left = checkpoint.most_mounts
    for name, data in checkpoint.mountpoints():
        found.append(decode_mounts(data, checkpoint.shown(name), most_mounts=left))
        left -= len(found[-1])
    return found


class _Mounts:
    """The mounts of all mount namespaces. The time for a path does not grow with their number."""

    def __init__(self, namespaces: Sequence[Sequence[DumpedMount]]) -> None:
        self.are_known = bool(namespaces)
        # Of two mounts at one place, the later one hides the other.
        self._places = [{one.mountpoint: one for one in mounts} for mounts in namespaces]
        self._numbers: dict[int, int] = {}
        for number, mounts in enumerate(namespaces):
            for one in mounts:
                self._numbers.setdefault(one.mnt_id, number)

    @property
    def lost(self) -> tuple[bytes, ...]:
        """The mount points of those that no restore can make again."""
        return tuple(point for place in self._places for point, one in place.items() if one.is_lost)

    def has(self, mountpoint: bytes) -> bool:
        """Whether a mount is there, in the namespace of the root task."""
        return self.are_known and mountpoint in self._places[0]

    @property
    def root_kdev(self) -> int | None:
        """The device of the root task's root."""
        root = self._places[0].get(b"/") if self._places else None
        return None if root is None else root.kdev

    def of(self, path: bytes, mnt_id: int | None) -> DumpedMount | None:
        """The mount that a path is on; None if that is a root."""
        # Without a mount id the path starts at the root of the root task's namespace. That
        # namespace was made first, so it has the smallest number.
        number = 0 if mnt_id is None else self._numbers.get(mnt_id)
        if number is None or not self.are_known:
            return None
        places = self._places[number]
        return next((places[one] for one in _upwards(path) if one in places), None)


def _upwards(path: bytes) -> Iterator[bytes]:
    # The path and the directories above it, without the root and without those that are longer
    # than any path of the kernel.
    end = len(path)
    if end > _LONGEST_PATH:
        end = path.rfind(b"/", 0, _LONGEST_PATH + 1)
    while end > 1:
        yield path[:end]
        end = path.rfind(b"/", 0, end)


def _removes(removed: frozenset[bytes], path: bytes) -> bool:
    return bool(removed) and any(one in removed for one in _upwards(path))


def _parent(path: bytes) -> bytes:
    return path[: max(path.rfind(b"/"), 0)]


class _Asked:
    """The names that are wanted of the archives inside, all asked for at once."""

    def __init__(self, checkpoint: CheckpointFiles) -> None:
        self._checkpoint = checkpoint
        self._wanted: dict[str, set[bytes]] = {}

    def has(self, archive: str) -> bool:
        return self._checkpoint.has_inside(archive)

    def add(self, archive: str, member: bytes) -> None:
        if member:  # the root directory itself is always there
            self._wanted.setdefault(archive, set()).add(member)

    def answers(self) -> dict[str, Inside]:
        return self._checkpoint.look_into(self._wanted)


class _Pending(Record):
    """An origin whose archive has not been asked yet."""

    origin: Origin
    archive: str = ""
    member: bytes = b""

    def told(self, answers: dict[str, Inside]) -> Origin:
        if not self.archive:
            return self.origin
        if not self.member:
            return self.origin._replace(has_it=True)
        answer = answers.get(self.archive)
        if answer is None:
            why = f"{self.origin.what} could not be read"
            return self.origin._replace(why_not_told=why, is_unread=True)
        has_it = self.member in answer.found or (None if answer.why else False)
        return self.origin._replace(
            has_it=has_it,
            why_not_told=answer.why,
            is_link=self.member in answer.links,
            is_unread=has_it is None,
        )


class _Container(Record):
    about: DumpedContainer
    by_destination: Mapping[bytes, SpecMount]
    """Its mounts. Of two at one place, the later one hides the other."""
    elsewhere: Mapping[bytes, Sequence[SpecMount]]
    """Those of them at whose destination is no mount, by the last part of it: a symbolic link of
    the image leads away."""

    @classmethod
    def of(cls, container: DumpedContainer, mounts: _Mounts) -> _Container:
        by_destination = {one.destination: one for one in container.mounts}
        elsewhere: dict[bytes, list[SpecMount]] = {}
        for one in by_destination.values():
            if not mounts.has(one.destination):
                elsewhere.setdefault(_base(one.destination), []).append(one)
        return cls(container, by_destination, elsewhere)

    def mount_at(self, mount: DumpedMount) -> SpecMount | None:
        found = self.by_destination.get(mount.mountpoint)
        if found is not None:
            return found
        # /var/run/data is mounted at /run/data, if /var/run is a link.
        root = mount.root.rstrip(b"/")
        named = self.elsewhere.get(_base(mount.mountpoint), ())
        alike = [one for one in named[:_MOST_ALIKE] if one.source.endswith(root)]
        return alike[0] if len(alike) == 1 and len(named) <= _MOST_ALIKE else None


def _base(path: bytes) -> bytes:
    return path[path.rfind(b"/") + 1 :]


def _binds(container: DumpedContainer) -> Iterator[Origin]:
    for one in container.mounts:
        if _is_bind(one) and not one.volume:
            origin = _of_bind(one, b"", container)
            if origin.source is not None:
                yield origin


def _is_bind(wanted: SpecMount) -> bool:
    return wanted.type == "bind" and wanted.source.startswith(b"/")


def _of_mount(start: Start, mount: DumpedMount, own: _Container, asked: _Asked) -> _Pending:
    inside = start[0][len(mount.mountpoint) :].strip(b"/")
    content = f"tmpfs-dev-{mount.kdev}.tar.gz.img"
    if asked.has(content):
        member = b"/".join(filter(None, (mount.root.strip(b"/"), inside)))
        return _in_archive(OriginKind.TMPFS, content, member, asked)
    if mount.mountpoint == b"/dev/shm" and asked.has(_DEVSHM):
        return _in_archive(OriginKind.TMPFS, _DEVSHM, inside, asked)
    wanted = own.mount_at(mount)
    if wanted is not None and wanted.volume:
        return _of_volume(wanted, inside, asked)
    what = f"the mount {printable(mount.mountpoint)}"
    if wanted is not None and _is_bind(wanted):
        return _Pending(_of_bind(wanted, inside, own.about))
    why = "its content is not in the images"
    return _Pending(Origin(OriginKind.MOUNT, what, None, why))


def _of_volume(wanted: SpecMount, inside: bytes, asked: _Asked) -> _Pending:
    archive = f"volumes/{wanted.volume}.tar"
    if asked.has(archive):
        return _in_archive(OriginKind.VOLUME, archive, inside, asked)
    what = f"the volume {printable_text(wanted.volume)}"
    why = "its content is not in the checkpoint, so the target host must have it"
    source = _below_source(wanted, inside) if inside and _is_bind(wanted) else None
    mount_source = None if source is None else wanted.source
    return _Pending(Origin(OriginKind.VOLUME, what, None, why, source, mount_source))


def _in_archive(kind: OriginKind, archive: str, member: bytes, asked: _Asked) -> _Pending:
    asked.add(archive, member)
    return _Pending(Origin(kind, printable_text(archive), None), archive, member)


def _of_bind(wanted: SpecMount, inside: bytes, container: DumpedContainer) -> Origin:
    where = printable(wanted.destination)
    id_ = container.id.encode("utf-8", "replace")
    if _OF_ENGINE.search(wanted.source) or (id_ and id_ in wanted.source.split(b"/")):
        why = f"{container.engine or 'the engine'} makes it for each container"
        return Origin(OriginKind.ENGINE, f"the mount {where}", None, why)
    if container.pod and _OF_KUBELET in wanted.source:
        why = "kubelet makes it for each pod"
        return Origin(OriginKind.ENGINE, f"the mount {where}", None, why)
    what = f"the mount {where}"
    if not inside and container.engine in _MAKE_SOURCES:
        why = f"{container.engine} makes {printable(wanted.source)} if the host lacks it"
        return Origin(OriginKind.BIND, what, None, why, mount_source=wanted.source)
    source = _below_source(wanted, inside)
    why = f"the target host must have {printable(source)}"
    return Origin(OriginKind.BIND, what, None, why, source, wanted.source)


def _below_source(wanted: SpecMount, inside: bytes) -> bytes:
    return b"/".join(filter(None, (wanted.source.rstrip(b"/"), inside))) or b"/"


def _ghosts(checkpoint: CheckpointFiles) -> dict[InodeKey, DumpedGhost]:
    ghosts = (decode_ghost(head, checkpoint.shown(name)) for name, head in checkpoint.ghosts())
    return {ghost.key: ghost for ghost in ghosts if ghost is not None}


def _removed(checkpoint: CheckpointFiles) -> frozenset[bytes]:
    data = checkpoint.beside("deleted.files")
    try:
        listed = json.loads(data or b"[]")
    except (ValueError, RecursionError):
        return frozenset()
    names = listed if isinstance(listed, list) else ()
    return frozenset(
        b"/" + name.strip("/").encode("utf-8", "surrogatepass")
        for name in names
        if isinstance(name, str)
    )
