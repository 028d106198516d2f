"""Find, prove and keep the paths of inotify watches and fanotify marks for CRIU.

The names of `__all__` are the library: docs/library.md describes them, and they are stable. All
modules below are internal.

CRIU waits for the import of this package, so each name is imported only at its first use (PEP 562).
Type checkers read the names in __init__.pyi.
"""

from __future__ import annotations

import sys

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
    "irmapdb.checkpoint.transaction": ("StepReport",),
    "irmapdb.criu.check.dump": ("DumpCheck", "MarkCheck", "Problem", "WatchCheck"),
    "irmapdb.criu.check.facts": ("Call",),
    "irmapdb.criu.check.restore": (
        "RestoreCheck",
        "RestoreProblem",
        "RestoreVerdict",
        "WatchRestore",
    ),
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

__all__ = ["__version__", *_MODULE_OF]  # noqa: PLE0604 each is a string


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
