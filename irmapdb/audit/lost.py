"""Decides on a mapping that failed its proof: its inode has moved, is deleted, or is unknown."""

from __future__ import annotations

from irmapdb.audit.findings import AuditFinding, AuditVerdict, Evidence
from irmapdb.audit.path_look import look_at_path
from irmapdb.kernel.fs.inode_state import InodeState
from irmapdb.model import StaleReason, format_kdev

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping as MappingABC

    from irmapdb.audit.path_look import PathLook
    from irmapdb.kernel.root import Root
    from irmapdb.model import FileHandle, Identity, Mapping, Resolved
    from irmapdb.resolve.engine import Resolution

__all__ = ["LostMappings"]

# The verdict for each reason of a failed proof, if no other path of the inode is known.
_LOST = {
    StaleReason.GONE: AuditVerdict.GONE,
    StaleReason.BAD_PATH: AuditVerdict.GONE,
    StaleReason.REPLACED: AuditVerdict.REPLACED,
    StaleReason.SYMLINK: AuditVerdict.REPLACED,
    StaleReason.REUSED: AuditVerdict.REUSED,
    StaleReason.UNMOUNTED: AuditVerdict.UNMOUNTED,
}
_FATE_NOTES = {
    InodeState.GONE: "the filesystem does not know its handle any more",
    InodeState.UNLINKED: "it has no name, but a process has it open",
}


class LostMappings:
    """Gives a verdict on each mapping of one root that failed its proof."""

    def __init__(self, root: Root, *, root_name: str, searched: bool) -> None:
        self._root = root
        self._root_name = root_name
        self._searched = searched

    def unmounted(self, mapping: Mapping) -> AuditFinding:
        """The finding for a mapping whose device is not mounted in this root."""
        look = self._look(mapping)
        kdev, handle = mapping.identity.kdev, mapping.identity.handle
        device = format_kdev(kdev)
        note = f"{device} is not mounted here"
        if self._root.mounts.of_device(kdev):
            note = f"{device} is not mounted there any more"
        elif any(mount.kdev == kdev for mount in self._root.mounts.all):
            note = f"the mounts of {device} are hidden under other mounts"
        elif look.found is not None and handle is not None and look.found.handle == handle:
            note = f"{note}; {format_kdev(look.found.kdev)} has a file with its handle at the path"
        return _finding(mapping, AuditVerdict.UNMOUNTED, StaleReason.UNMOUNTED, look, note)

    def finding(
        self,
        mapping: Mapping,
        reason: StaleReason,
        outcome: Resolution,
        states: MappingABC[FileHandle, InodeState],
    ) -> AuditFinding:
        """The finding for a mapping whose proof failed for `reason`.

        `outcome` has its inode if that has a handle, resolved or not; `states` has the handle of
        each inode that was not resolved.
        """
        identity = mapping.identity
        if reason is StaleReason.AMBIGUOUS:
            shared = Evidence(reason, unseen="the kernel shows the same of several files there")
            return AuditFinding(mapping, AuditVerdict.UNREACHABLE, shared)
        look = self._look(mapping)
        if reason is StaleReason.UNREACHABLE:
            # The path can be read now, but could not before.
            unseen = look.unseen or "the first look at it failed"
            evidence = Evidence(reason, unseen=unseen)
            return AuditFinding(mapping, AuditVerdict.UNREACHABLE, evidence)
        if reason is StaleReason.GONE:
            look = look._replace(unseen="")  # the proof has looked where `look_at_path` does not
        answer = outcome.resolved.get(identity)
        if answer is not None:
            return _found_elsewhere(mapping, reason, look, answer)
        if reason is StaleReason.UNMOUNTED and not self._root.mounts.of_device(identity.kdev):
            return self.unmounted(mapping)
        state, note = self._state(identity, outcome, states)
        verdict = self._verdict(reason, state, identity.kdev)
        if verdict is AuditVerdict.UNMOUNTED:
            note = f"{format_kdev(identity.kdev)} is mounted elsewhere, not at the path; {note}"
        return _finding(mapping, verdict, reason, look, note)

    def _verdict(self, reason: StaleReason, state: InodeState, kdev: int) -> AuditVerdict:
        verdict = _LOST.get(reason, AuditVerdict.REPLACED)
        if state is InodeState.NAMED:
            # If the root shows only a part of the device, the name may be outside of it.
            return AuditVerdict.MOVED if self._shows_all_of(kdev) else verdict
        is_nowhere = verdict in {AuditVerdict.GONE, AuditVerdict.UNMOUNTED}
        if is_nowhere and state is not InodeState.UNKNOWN:
            return AuditVerdict.DELETED
        return verdict

    def _state(
        self,
        identity: Identity,
        outcome: Resolution,
        states: MappingABC[FileHandle, InodeState],
    ) -> tuple[InodeState, str]:
        # Of an inode without a known path; and the note about it.
        if identity.handle is None:
            return InodeState.UNKNOWN, "no handle was stored to look for it by"
        failure = outcome.unresolved[identity]
        state = InodeState.UNLINKED if failure.deleted else states[identity.handle]
        note = _FATE_NOTES.get(state, failure.why)
        partly = state is InodeState.NAMED and not self._shows_all_of(identity.kdev)
        if partly:
            nowhere = f"at no known path below {self._root_name}"
            note = f"it is there on its device, but {nowhere} ({failure.why})"
        if not self._searched:
            if state is InodeState.NAMED and not partly:
                note = "it exists under an unknown name: a search scans for it"
            elif partly or state is InodeState.UNKNOWN:
                note = f"{note}; a search scans for it"
        return state, note

    def _shows_all_of(self, kdev: int) -> bool:
        return any(mount.root == b"/" for mount in self._root.mounts.of_device(kdev))

    def _look(self, mapping: Mapping) -> PathLook:
        return look_at_path(self._root, mapping.path)


def _found_elsewhere(
    mapping: Mapping, reason: StaleReason, look: PathLook, answer: Resolved
) -> AuditFinding:
    names = (answer.path, *answer.other_paths)
    if mapping.path in names:
        return AuditFinding(mapping, AuditVerdict.VALID)  # it was put back while we looked
    evidence = Evidence(reason, look.found, look.changed_at, names, answer.source, look.unseen)
    return AuditFinding(mapping, AuditVerdict.MOVED, evidence)


def _finding(
    mapping: Mapping, verdict: AuditVerdict, reason: StaleReason, look: PathLook, note: str
) -> AuditFinding:
    evidence = Evidence(reason, look.found, look.changed_at, unseen=look.unseen, note=note)
    return AuditFinding(mapping, verdict, evidence)
