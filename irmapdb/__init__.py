"""Find, prove and keep the paths of inotify watches and fanotify marks for CRIU.

The names of `__all__` are the library: docs/library.md describes them, and they are stable. All
modules below are internal.

CRIU waits for the import of this package, so each name is imported only at its first use (PEP 562).
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False
"""As in typing, which takes longer to import than all the rest here."""

if TYPE_CHECKING:
    from irmapdb.api import (
        AnyPath,
        audit,
        check,
        check_images,
        dump,
        open_database,
        pre_dump,
        read_cache,
        write_cache,
    )
    from irmapdb.audit.check import AuditReport
    from irmapdb.audit.findings import AuditFinding, AuditVerdict, Evidence
    from irmapdb.checkpoint.findings import MarkRow
    from irmapdb.checkpoint.steps import StepReport
    from irmapdb.criu.check.dump import DumpCheck, MarkCheck, Problem, WatchCheck
    from irmapdb.criu.check.facts import Call
    from irmapdb.criu.check.restore import RestoreCheck, RestoreVerdict, WatchRestore
    from irmapdb.criu.check.verdicts import CriuOutcome, Prediction, ScanAdvice, WatchVerdict
    from irmapdb.criu.check.version import CriuVersion
    from irmapdb.errors import (
        ConfigError,
        DatabaseError,
        FileError,
        FreezeError,
        ImageError,
        IrmapError,
        SqlError,
        TaskError,
        UsageError,
    )
    from irmapdb.image.cache import decode_cache, encode_cache
    from irmapdb.image.critjson import decode_json as decode_crit_json
    from irmapdb.image.critjson import encode_json as encode_crit_json
    from irmapdb.image.fsnotify import (
        FsnotifyFile,
        FsnotifyWatch,
        MountMark,
        decode_fanotify,
        decode_files_img,
        decode_inotify,
        encode_fanotify,
        encode_inotify,
    )
    from irmapdb.kernel.proc.survey import Denied
    from irmapdb.kernel.proc.tasks import Task
    from irmapdb.model import (
        CacheEntry,
        Change,
        ChangeKind,
        Event,
        FileHandle,
        Identity,
        InodeKey,
        Mapping,
        Mark,
        MarkKind,
        Mount,
        Resolved,
        RunStats,
        Source,
        StaleReason,
        Tried,
        Watch,
        WatchFile,
        WatchKind,
        format_kdev,
        from_printable,
        kdev_of,
        major_minor,
        parse_kdev,
        printable,
    )
    from irmapdb.store.ask import Answer, Value
    from irmapdb.store.ask import Ask as Database
    from irmapdb.store.records import WatchRow

__all__ = [
    "Answer",
    "AnyPath",
    "AuditFinding",
    "AuditReport",
    "AuditVerdict",
    "CacheEntry",
    "Call",
    "Change",
    "ChangeKind",
    "ConfigError",
    "CriuOutcome",
    "CriuVersion",
    "Database",
    "DatabaseError",
    "Denied",
    "DumpCheck",
    "Event",
    "Evidence",
    "FileError",
    "FileHandle",
    "FreezeError",
    "FsnotifyFile",
    "FsnotifyWatch",
    "Identity",
    "ImageError",
    "InodeKey",
    "IrmapError",
    "Mapping",
    "Mark",
    "MarkCheck",
    "MarkKind",
    "MarkRow",
    "Mount",
    "MountMark",
    "Prediction",
    "Problem",
    "Resolved",
    "RestoreCheck",
    "RestoreVerdict",
    "RunStats",
    "ScanAdvice",
    "Source",
    "SqlError",
    "StaleReason",
    "StepReport",
    "Task",
    "TaskError",
    "Tried",
    "UsageError",
    "Value",
    "Watch",
    "WatchCheck",
    "WatchFile",
    "WatchKind",
    "WatchRestore",
    "WatchRow",
    "WatchVerdict",
    "__version__",
    "audit",
    "check",
    "check_images",
    "decode_cache",
    "decode_crit_json",
    "decode_fanotify",
    "decode_files_img",
    "decode_inotify",
    "dump",
    "encode_cache",
    "encode_crit_json",
    "encode_fanotify",
    "encode_inotify",
    "format_kdev",
    "from_printable",
    "kdev_of",
    "major_minor",
    "open_database",
    "parse_kdev",
    "pre_dump",
    "printable",
    "read_cache",
    "write_cache",
]

__version__ = "0.2.0"

_MODULES = {
    "irmapdb.api": (
        "AnyPath",
        "audit",
        "check",
        "check_images",
        "dump",
        "open_database",
        "pre_dump",
        "read_cache",
        "write_cache",
    ),
    "irmapdb.audit.check": ("AuditReport",),
    "irmapdb.audit.findings": ("AuditFinding", "AuditVerdict", "Evidence"),
    "irmapdb.checkpoint.findings": ("MarkRow",),
    "irmapdb.checkpoint.steps": ("StepReport",),
    "irmapdb.criu.check.dump": ("DumpCheck", "MarkCheck", "Problem", "WatchCheck"),
    "irmapdb.criu.check.facts": ("Call",),
    "irmapdb.criu.check.restore": ("RestoreCheck", "RestoreVerdict", "WatchRestore"),
    "irmapdb.criu.check.verdicts": ("CriuOutcome", "Prediction", "ScanAdvice", "WatchVerdict"),
    "irmapdb.criu.check.version": ("CriuVersion",),
    "irmapdb.errors": (
        "ConfigError",
        "DatabaseError",
        "FileError",
        "FreezeError",
        "ImageError",
        "IrmapError",
        "SqlError",
        "TaskError",
        "UsageError",
    ),
    "irmapdb.image.cache": ("decode_cache", "encode_cache"),
    "irmapdb.image.critjson": ("decode_crit_json", "encode_crit_json"),
    "irmapdb.image.fsnotify": (
        "FsnotifyFile",
        "FsnotifyWatch",
        "MountMark",
        "decode_fanotify",
        "decode_files_img",
        "decode_inotify",
        "encode_fanotify",
        "encode_inotify",
    ),
    "irmapdb.kernel.proc.survey": ("Denied",),
    "irmapdb.kernel.proc.tasks": ("Task",),
    "irmapdb.model": (
        "CacheEntry",
        "Change",
        "ChangeKind",
        "Event",
        "FileHandle",
        "Identity",
        "InodeKey",
        "Mapping",
        "Mark",
        "MarkKind",
        "Mount",
        "Resolved",
        "RunStats",
        "Source",
        "StaleReason",
        "Tried",
        "Watch",
        "WatchFile",
        "WatchKind",
        "format_kdev",
        "from_printable",
        "kdev_of",
        "major_minor",
        "parse_kdev",
        "printable",
    ),
    "irmapdb.store.ask": ("Answer", "Database", "Value"),
    "irmapdb.store.records": ("WatchRow",),
}
_OTHER_NAMES = {
    "Database": "Ask",
    "decode_crit_json": "decode_json",
    "encode_crit_json": "encode_json",
}
"""The names that differ in their module."""

_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


if not TYPE_CHECKING:  # where a type checker sees it, it accepts every name

    def __getattr__(name: str) -> object:
        if name not in _MODULE_OF:
            message = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(message, name=name, obj=sys.modules[__name__])
        from importlib import import_module  # noqa: PLC0415 the hook does without

        value = getattr(import_module(_MODULE_OF[name]), _OTHER_NAMES.get(name, name))
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Library(type(sys)):  # type: ignore[misc]  # types.ModuleType, without an import
    """Ours: an import of the package `irmapdb.audit` does not hide the function of that name."""

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _MODULE_OF or not isinstance(value, type(sys)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Library
