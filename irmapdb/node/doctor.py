"""Finds the reasons why the hook would not run, or not help, on this machine.

Each finding has the command that mends it. A note is no finding: it can be intended.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
from pathlib import Path

from irmapdb.config import DEFAULT_PATH, Config, load_config
from irmapdb.criu import config_files, hook_runs, script_faults
from irmapdb.criu.config_files import Runtime
from irmapdb.criu.engines import find_engines
from irmapdb.criu.hook_script import SCRIPT_PATH
from irmapdb.criu.usable import find_criu, how_to_install
from irmapdb.errors import ConfigError, FileError
from irmapdb.model import printable, printable_text
from irmapdb.node.criu_annotations import annotated_containers, files_with_hook
from irmapdb.node.service_faults import DoctorOptions, Finding, ServiceState, look_at_service
from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from irmapdb.criu.engines import Engine
    from irmapdb.criu.hook_runs import HookRun
    from irmapdb.criu.script_faults import Fault
    from irmapdb.criu.usable import CriuProgram
    from irmapdb.model import AnyPath

__all__ = ["Diagnosis", "EngineState", "examine"]

_PAUSING = frozenset({"cri-o", "containerd", "docker"})
"""Engines that pause a container before they call CRIU."""

_SHOWN_CHARACTERS = 300
_RUNS = 10


class EngineState(Record):
    """An engine, and the scripts of the hook that CRIU calls under it."""

    engine: Engine
    scripts: tuple[Path, ...]
    """() if CRIU calls none."""
    file: Path | None
    """The first file that names one."""


class Diagnosis(Record):
    """All that was found."""

    engines: tuple[EngineState, ...]
    criu: CriuProgram | None
    service: ServiceState
    runs: tuple[HookRun, ...]
    """The last runs of the hook, the newest one last."""
    findings: tuple[Finding, ...]
    notes: tuple[Finding, ...]


def examine(options: DoctorOptions) -> Diagnosis:
    """Look at everything. It starts `criu check` and the script, and changes nothing."""
    doctor = _Doctor(options)
    engines = doctor.look_at_engines()
    doctor.look_at_annotations()
    criu = doctor.look_at_criu()
    doctor.look_at_scripts(engines)
    config = doctor.look_at_config()
    doctor.look_at_directories(config)
    service, faults = look_at_service(options)
    doctor.findings += faults
    doctor.recommend_service(engines, service)
    runs = doctor.look_at_runs(engines)
    return Diagnosis(engines, criu, service, runs, tuple(doctor.findings), tuple(doctor.notes))


class _Doctor:
    def __init__(self, options: DoctorOptions) -> None:
        self._options = options
        self.findings: list[Finding] = []
        self.notes: list[Finding] = []

    def _find(self, about: str, text: str, command: str) -> None:
        finding = Finding(about, text, command)
        if finding not in self.findings:
            self.findings.append(finding)

    def _find_fault(self, about: str, fault: Fault | None) -> None:
        if fault is not None:
            self._find(about, fault.text, fault.command)

    # --- the line in CRIU's configuration ---------------------------------------------------------

    def look_at_engines(self) -> tuple[EngineState, ...]:
        options = self._options
        engines = find_engines(options.criu_dir, options.root)
        named: dict[Path, tuple[Path, ...]] = {}
        for file in dict.fromkeys(file for one in engines for file in one.files):
            named[file] = self._scripts_in(file)
        found = [_state(engine, named) for engine in engines]
        by_hand_only = all(one.engine.name == "criu" for one in found)
        missing: dict[str, list[str]] = {}
        for one in found:
            if one.scripts or not one.engine.files:
                continue
            if one.engine.name == "criu" and not by_hand_only:
                text = "CRIU does not call the hook if you start `criu dump` yourself"
                self.notes.append(Finding("hook-line", text, self.install(Runtime.CRIU)))
                continue
            runtime = Runtime(one.engine.runtime)
            if one.engine.unread:
                self._find("crun", one.engine.unread, self.install(Runtime.CRIU))
                continue
            missing.setdefault(self.install(runtime), []).append(one.engine.name)
        for command, names in missing.items():
            text = f"CRIU does not call the hook under {_listed(names)}: no line in its files"
            self._find("hook-line", text, command)
        if not found:
            text = "no engine is here: no criu, runc, crun, podman, CRI-O, containerd or docker"
            self._find("engines", text, how_to_install(None))
        return tuple(found)

    def look_at_annotations(self) -> None:
        options = self._options
        if self._scripts_in(options.criu_dir / "default.conf"):
            return  # CRIU reads it in any case
        found = annotated_containers(options.root)
        named_by = files_with_hook({one.file for one in found if one.file}, self._names_hook)
        for one in found:
            file, name = Path(one.file), _shown_text(one.id)
            if not one.file:
                text = f"container {name}: with an empty org.criu.config, CRIU reads no file"
                self._find("annotation", text, self.install(Runtime.CRIU))
            elif one.file not in named_by:
                shown = _shown_text(one.file)
                text = f"container {name}: its org.criu.config, {shown}, does not name the hook"
                # The user of the engine chose the name, so root writes to no other directory.
                command = shlex.join(["irmapdb", "hook", "--print", "runc"])
                if file.parent == options.criu_dir and one.file.isprintable():
                    line = config_files.line_for(options.script)
                    command = f"echo {shlex.quote(line)} >>{_quoted(file)}"
                self._find("annotation", text, command)

    def _names_hook(self, file: str) -> bool:
        try:
            return bool(config_files.our_scripts(Path(file), self._options.script))
        except FileError:
            return False

    def _scripts_in(self, file: Path) -> tuple[Path, ...]:
        try:
            scripts = config_files.our_scripts(file, self._options.script)
            if file.exists():
                for path in (file, file.parent):
                    self._find_fault("rights", script_faults.write_fault(path))
        except FileError as error:
            self._find("hook-line", str(error), script_faults.move_command(file))
            return ()
        except OSError as error:
            self._find("hook-line", f"{printable(file)}: {error.strerror}", f"ls -l {file}")
            return ()
        return scripts

    def install(self, runtime: Runtime) -> str:
        """The command that installs the hook for a runtime."""
        return _command(self._options, "--install", str(runtime))

    # --- CRIU and the script ----------------------------------------------------------------------

    def look_at_criu(self) -> CriuProgram | None:
        criu = find_criu()
        if criu is None:
            text = "no criu is on PATH, so no engine can checkpoint"
            self._find("criu", text, how_to_install(None))
        elif criu.why_not:
            text = f"{criu.fault}; 4.1.1 or newer is needed"
            self._find("criu", text, how_to_install(criu))
        return criu

    def look_at_scripts(self, engines: Iterable[EngineState]) -> None:
        seen: set[Path] = set()
        for one in engines:
            for script in one.scripts:
                if script in seen or one.file is None:
                    continue
                seen.add(script)
                install = self.install(_runtime_of(one.file))
                for fault in script_faults.find_script_faults(script, install):
                    self._find_fault("script", fault)
                # A checkout of a user is no fault if this user is trusted.
                for fault in script_faults.find_program_faults(script):
                    self.notes.append(Finding("rights", fault.text, fault.command))

    # --- irmapdb's own files ----------------------------------------------------------------------

    def look_at_config(self) -> Config:
        path = self._options.config
        try:
            return load_config(path)
        except ConfigError as error:
            # A file that was named must exist.
            words = [] if path is None else [f": >{_quoted(path)}"]
            if path is None or os.path.lexists(path):
                words.insert(0, script_faults.move_command(DEFAULT_PATH if path is None else path))
            self._find("config", str(error), " && ".join(words))
            return Config()

    def look_at_directories(self, config: Config) -> None:
        for path in (self._options.run, config.warm.directory, config.hook.db):
            if path is None:
                continue
            try:
                found = os.lstat(path)
                if not stat.S_ISDIR(found.st_mode):
                    text = f"{printable(path)} is no directory"
                    self._find("rights", text, script_faults.move_command(path))
                    continue
                self._find_fault("rights", script_faults.write_fault(path))
            except FileNotFoundError:
                continue
            except OSError as error:
                self._find("rights", f"{printable(path)}: {error.strerror}", "run this as root")

    def recommend_service(self, engines: Iterable[EngineState], service: ServiceState) -> None:
        names = [one.engine.name for one in engines if one.engine.name in _PAUSING]
        if service.pid is None and names:
            text = (
                f"under {_listed(names)}, a container is paused before CRIU starts: the service"
                " keeps this pause short"
            )
            self.notes.append(Finding("service", text, "irmapdb warm --install"))

    # --- the last runs ----------------------------------------------------------------------------

    def look_at_runs(self, engines: Iterable[EngineState]) -> tuple[HookRun, ...]:
        try:
            runs = hook_runs.read_runs(self._options.run).last[-_RUNS:]
        except FileError as error:
            path = self._options.run / hook_runs.NAME
            self._find("last-run", str(error), script_faults.move_command(path))
            return ()
        if runs and runs[-1].outcome == "failed" and runs[-1].at_s > _installed_at_s(engines):
            text = f"the last run of the hook failed: {runs[-1].text}"
            self._find("last-run", text, _command(self._options, "--try"))
        return runs


def _installed_at_s(engines: Iterable[EngineState]) -> float:
    # A failure before the script was written again is mended.
    times = [0.0]
    for script in {script for one in engines for script in one.scripts}:
        with contextlib.suppress(OSError):
            times.append(script.stat().st_mtime)
    return max(times)


def _command(options: DoctorOptions, *words: str) -> str:
    # With the options that were given.
    given = ["irmapdb", "hook", *words]
    if options.criu_dir != config_files.DIRECTORY:
        given += ["--criu-dir", os.fspath(options.criu_dir)]
    if options.script != SCRIPT_PATH:
        given += ["--script", os.fspath(options.script)]
    return shlex.join(given)


def _state(engine: Engine, named: dict[Path, tuple[Path, ...]]) -> EngineState:
    scripts: list[Path] = []
    first = None
    for file in engine.read_files:
        if named[file] and first is None:
            first = file
        scripts += named[file]
    return EngineState(engine, tuple(dict.fromkeys(scripts)), first)


def _listed(names: list[str]) -> str:
    *before, last = names
    return f"{', '.join(before)} and {last}" if before else last


def _runtime_of(file: Path) -> Runtime:
    return {"runc.conf": Runtime.RUNC, "crun.conf": Runtime.CRUN}.get(file.name, Runtime.CRIU)


def _shown_text(text: str) -> str:
    # A text of an engine, on one line. An annotation may have 256 KiB.
    cut = text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"
    return printable_text(cut)


def _quoted(path: AnyPath) -> str:
    return shlex.quote(os.fsdecode(path))
