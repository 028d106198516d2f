"""Implements `irmapdb hook`: runs the hook by hand, and edits CRIU's configuration."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from irmapdb.commands import render
from irmapdb.commands.exit import end_with_findings
from irmapdb.commands.options import (
    AsJson,
    ConfigFile,
    ContainerName,
    CriuWorkDir,
    ImagesDir,
    RunDir,
    flag,
    path_option,
    root_task_if_given,
    tree_option,
)
from irmapdb.errors import FileError, UsageError

if TYPE_CHECKING:
    from irmapdb.criu import config_files
    from irmapdb.criu.config_files import LineChange

__all__ = ["hook"]


Runtime = Literal["criu", "runc", "crun", "podman"]


def hook(
    pid: Annotated[
        int | None,
        tree_option("The root task of the tree.  [default: CRTOOLS_INIT_PID, which CRIU sets]"),
    ] = None,
    container: ContainerName = None,
    images_dir: ImagesDir = Path(),
    work_dir: CriuWorkDir = None,
    install: Annotated[
        Runtime | None, typer.Option(help="Make CRIU call the hook under this runtime.")
    ] = None,
    uninstall: Annotated[
        Runtime | None, typer.Option(help="Remove the line and the files of --install.")
    ] = None,
    print_: Annotated[
        Runtime | None, typer.Option("--print", help="Show the file and the line; write nothing.")
    ] = None,
    script: Annotated[
        Path | None,
        path_option(
            metavar="FILE",
            text="The script that CRIU calls. --install writes it, but never replaces another "
            "program.  [default: /usr/local/libexec/irmapdb/irmapdb-hook]",
        ),
    ] = None,
    criu_dir: Annotated[
        Path, typer.Option(readable=False, metavar="DIR", help="Directory of CRIU's configuration.")
    ] = Path("/etc/criu"),
    status: Annotated[
        bool, flag("--status", "Show whether the hook works, and how to repair it.")
    ] = False,
    try_: Annotated[bool, flag("--try", "Checkpoint and restore a small test process.")] = False,
    run_dir: RunDir = Path("/run/irmapdb"),
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Make CRIU run irmapdb before every dump, or run that step now.

    CRIU calls `irmapdb-hook` as its action script before it freezes the tasks. The hook finds the
    paths of all watches and writes `irmap-cache`, which CRIU then loads. An error of the hook goes
    to `irmapdb.log` in the work dir. It fails the dump only if `strict` is set. `[hook]` in
    `/etc/irmapdb.toml` has the settings.

    --status looks at the engines of this machine, CRIU, the script, the service and the last runs.
    It prints the command that mends each fault, and exits with 3 if there is one. --try dumps and
    restores a process with a watch on an overlay, in a mount namespace of its own.

    Examples:
        irmapdb hook --install runc

        irmapdb hook --print podman

        irmapdb hook --status

        irmapdb hook --try

        criu dump -t 4711 -D img --action-script /usr/local/libexec/irmapdb/irmapdb-hook

        irmapdb hook -t 4711 -D img

    """
    from irmapdb.criu import config_files

    wanted = [one for one in (install, uninstall, print_, status or None, try_ or None) if one]
    if len(wanted) > 1 or (wanted and (pid is not None or container is not None)):
        message = (
            "--install, --uninstall, --print, --status, --try, -t and --container do not go"
            " together"
        )
        raise UsageError(message, advice="give one of them")
    if as_json and not wanted:
        message = "--json goes with --install, --uninstall, --print, --status or --try"
        raise UsageError(message, advice="`irmapdb pre-dump --json` lists each watch")
    if status:
        _show_status(_called(script), Path(os.path.abspath(criu_dir)), run_dir, config, as_json)
    elif try_:
        _try(_called(script), Path(os.path.abspath(criu_dir)), as_json=as_json)
    elif install is not None:
        called = _install(config_files.Runtime(install), script, criu_dir, as_json=as_json)
        _say_who_calls(called, install, as_json=as_json)
    elif uninstall is not None:
        _uninstall(config_files.Runtime(uninstall), script, criu_dir, as_json=as_json)
    elif print_ is not None:
        _print_line(config_files.Runtime(print_), script, criu_dir, as_json=as_json)
    else:
        raise typer.Exit(_attend(root_task_if_given(pid, container), images_dir, work_dir))


def _print_line(
    runtime: config_files.Runtime, script: Path | None, criu_dir: Path, *, as_json: bool
) -> None:
    from irmapdb.criu import config_files

    line = config_files.line_for(_called(script), [runtime])
    files = config_files.of_runtime(runtime, criu_dir)
    if as_json:
        render.print_json([{"file": str(file), "line": line} for file in files])
        return
    for file in files:
        render.say(f"in {render.shown(file)}:")
        typer.echo(line)
    _tell_of_crun(runtime.value)


def _show_status(
    script: Path, criu_dir: Path, run_dir: Path, config: Path | None, as_json: bool
) -> None:
    from irmapdb.commands import hook_status
    from irmapdb.node.doctor import examine
    from irmapdb.node.service_faults import DoctorOptions

    _require_root("--status")
    run = Path(os.path.abspath(run_dir))
    options = DoctorOptions(criu_dir=criu_dir, script=script, run=run, config=config)
    diagnosis = examine(options)
    if as_json:
        render.print_json(hook_status.status_json(diagnosis))
    else:
        hook_status.print_status(diagnosis)
    end_with_findings(diagnosis.findings)


def _try(script: Path, criu_dir: Path, *, as_json: bool) -> None:
    from irmapdb.commands import hook_status
    from irmapdb.criu.trial import TrialOptions, try_checkpoint

    _require_root("--try")
    result = try_checkpoint(TrialOptions(criu_dir, script))
    if as_json:
        render.print_json(render.json_fields(result))
    else:
        hook_status.print_trial(result)
    end_with_findings(not result.passed)


def _require_root(option: str) -> None:
    if os.geteuid() != 0:
        message = f"{option} reads files that only root can read, and starts CRIU"
        raise FileError(message, advice="run it as root")


def _attend(pid: int | None, images_dir: Path, work_dir: Path | None) -> int:
    from irmapdb.checkpoint.work_dir import made_directory
    from irmapdb.criu import hook

    if pid is None:
        if "CRTOOLS_SCRIPT_ACTION" not in os.environ:
            message = "no process is named"
            raise UsageError(message, advice="give -t PID; CRIU itself names it in the environment")
        return hook.main()
    images = os.path.abspath(images_dir)
    work = images_dir if work_dir is None else work_dir
    with made_directory(images_dir), made_directory(work_dir):
        try:
            os.chdir(work)
        except OSError as error:
            message = f"{render.shown(work)}: {error.strerror}"
            raise FileError(message, advice="make it, or name another one with -W") from error
        return hook.attend(pid, images, until_stored=True)


def _called(script: Path | None) -> Path:
    from irmapdb.criu import hook_script

    return hook_script.SCRIPT_PATH if script is None else Path(os.path.abspath(script))


def _install(
    runtime: config_files.Runtime, script: Path | None, criu_dir: Path, *, as_json: bool
) -> Path:
    # Our script, or a program of the user, which stays as it is.
    from irmapdb.criu import config_files, hook_script

    called = _called(script)
    config_files.line_for(called)
    if not os.path.exists(called) or hook_script.is_script(called):
        program = _program()
        config_files.check_hook(program)
        _compile()
        python = hook_script.find_python()
        for file in config_files.of_runtime(runtime, Path(os.path.abspath(criu_dir))):
            hook_script.write_script(called, program, file, python=python)
    _show(config_files.install(runtime, called, criu_dir), as_json=as_json)
    return called


def _uninstall(
    runtime: config_files.Runtime, script: Path | None, criu_dir: Path, *, as_json: bool
) -> None:
    from irmapdb.criu import config_files, hook_script

    own = None if script is None else _called(script)
    done = config_files.uninstall(runtime, own, Path(os.path.abspath(criu_dir)))
    _show(done, as_json=as_json)
    for one in done:
        for called in one.removed_scripts:
            if hook_script.release_script(called, one.file) and not as_json:
                render.say(f"{render.shown(called)}: removed, as no file calls it any more")


def _program() -> Path:
    # The `irmapdb-hook` of this Python environment.
    import sysconfig

    from irmapdb.criu.config_files import HOOK_NAME
    from irmapdb.criu.hook_script import is_script

    beside = (os.path.dirname(sys.argv[0]), sysconfig.get_path("scripts"))
    found = [Path(os.path.abspath(directory), HOOK_NAME) for directory in beside if directory]
    found += map(Path, filter(None, [shutil.which(HOOK_NAME)]))
    for program in found:
        if os.path.isfile(program) and not is_script(program):
            return program
    message = f"no {HOOK_NAME} is installed"
    raise FileError(message, advice="install irmapdb with pip")


def _compile() -> None:
    # Some installers leave this to the first start. That may be the hook, or may not be allowed to.
    import compileall

    import irmapdb

    for directory in irmapdb.__path__:
        compileall.compile_dir(directory, quiet=2)


def _say_who_calls(called: Path, runtime: Runtime, *, as_json: bool) -> None:
    """Exit code 3 if the file is written, but the crun of this machine will not read it."""
    from irmapdb.criu.crun import why_not_read

    why = why_not_read() if runtime in {"crun", "podman"} else ""
    if why:
        render.say(f"{why}: crun will not call {render.shown(called)}")
        render.say("use `irmapdb hook --install criu`, which works with every runtime")
        end_with_findings(why)
    if not as_json:
        render.say(f"CRIU calls {render.shown(called)} before each dump")


def _tell_of_crun(runtime: Runtime) -> None:
    if runtime in {"crun", "podman"}:
        render.say(
            "crun reads it with a libcriu of CRIU 4.2 or newer; for an older one, use"
            " `--install criu`"
        )


def _show(done: list[LineChange], *, as_json: bool) -> None:
    if as_json:
        render.print_json([render.json_fields(one, "file did other_scripts") for one in done])
        return
    for one in done:
        name = render.shown(one.file)
        typer.echo(f"{name}: {one.did}")
        for other in map(render.shown, one.other_scripts):
            render.say(f"{name}: {other} stays, CRIU calls both")
