"""`make demo`: CRIU fails on an overlay, passes with irmapdb's paths; then a rename before a dump.

The first part needs root and a CRIU; without one of them only the second part runs.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_HERE = Path(__file__).parent
_DONE = (0, 3)
_OLDEST = (4, 1)
"""The oldest CRIU that irmapdb supports."""


def main() -> None:
    """Both parts, in a directory that is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="demo-", dir="/var/tmp") as scratch:
        criu = _find_criu()
        if isinstance(criu, str):
            _say(f"The dump with CRIU is left out: {criu}.")
        else:
            # irmapdb asks the CRIU on PATH for its version.
            os.environ["PATH"] = f"{criu.parent}:{os.environ['PATH']}"
            version = ".".join(map(str, _version(criu)))
            _say(f"This demo uses CRIU {version}, {criu}")
            _show_overlay(Path(scratch, "container"), criu)
        _show_rename(Path(scratch, "rename"))


def _find_criu() -> Path | str:
    # A CRIU, or the reason why there is none.
    if os.geteuid() != 0:
        return "CRIU and overlay mounts need root"
    found = shutil.which("criu")
    if found is not None and _version(Path(found)) >= _OLDEST:
        return Path(found)
    sys.path.insert(0, str(_HERE.parent))
    try:
        from tests.support.criu_versions import criu_of  # noqa: PLC0415 only where there is no CRIU
        from tests.support.packages import RigError  # noqa: PLC0415
    except ImportError:
        return "no CRIU 4.1 or newer on PATH"
    try:
        return criu_of("4.2")
    except RigError as error:
        return str(error)


def _show_overlay(top: Path, criu: Path) -> None:
    with _overlay(top) as root, _task([root / "app/settings", root / "app/log"], top) as pid:
        (top / "alone").mkdir()
        _say("A task watches two files on an overlay, the filesystem of most containers.")
        _say("irmapdb check predicts the dump.")
        _run("check", "-t", str(pid), "-D", top / "alone")
        _say("CRIU alone looks for the paths while the task is frozen.")
        if _criu(criu, "dump", "-t", str(pid), "--leave-running", "-D", top / "alone"):
            _say("This CRIU found the paths by its own walk of the overlay, as 4.3 can.")
        else:
            _say("CRIU found no path for a watch, so the dump failed.")
        _say("irmapdb finds the paths before the dump, while the task runs.")
        _run("pre-dump", "-t", str(pid), "-D", top / "images")
        _say("CRIU reads irmap-cache in the same directory, and the dump passes.")
        options = ("-t", str(pid), "--leave-running", "-D", top / "images")
        if not _criu(criu, "dump", *options):
            sys.exit("demo: CRIU failed with the paths of irmapdb")
        _say("The images have a path for each watch, so a restore will set it again.")
        _run("check", "--images", top / "images", "--root", "/")


def _show_rename(top: Path) -> None:
    tree, work = top / "srv", top / "images"
    for directory in (tree / "conf", tree / "data", work):
        directory.mkdir(parents=True)
    for name in ("conf/app.toml", "data/today.log", "data/caf\udce9.csv"):
        (tree / name).write_text("x\n")
    watched = [tree / name for name in ("conf/app.toml", "data/today.log", "data/caf\udce9.csv")]
    with _task([*watched, tree / "data", Path("/etc/passwd")], top) as pid:
        _say("Another task, on the filesystem of /var/tmp. irmapdb stores the paths in irmap.db.")
        _run("pre-dump", "-t", str(pid), "-D", work)
        _say("A log rotation: a watched file gets another name.")
        (tree / "data/today.log").rename(tree / "data/today.log.1")
        sys.stdout.write(f"$ mv {tree}/data/today.log {tree}/data/today.log.1\n")
        _say("irmapdb dump stops the task only to confirm each path. It finds the new name.")
        _run("dump", "-t", str(pid), "-D", work)
        _say(f"The task runs again: its state is {_state(pid)}. irmap.db has the rename.")
        query = "SELECT kind, old_path, path, reason FROM change WHERE old_path IS NOT NULL"
        _run("sql", "--db", work / "irmap.db", query)
        _say("To make CRIU call irmapdb before each dump: irmapdb hook --install criu")


@contextmanager
def _overlay(top: Path) -> Iterator[Path]:
    # As a container engine mounts it: the image below, the container's own changes above.
    for name in ("image/app", "changes", "work", "root"):
        (top / name).mkdir(parents=True)
    for name in ("settings", "log"):
        (top / "image/app" / name).write_text("x\n")
    layers = f"lowerdir={top}/image,upperdir={top}/changes,workdir={top}/work"
    subprocess.run(["mount", "-t", "overlay", "-o", layers, "overlay", top / "root"], check=True)
    try:
        yield top / "root"
    finally:
        subprocess.run(["umount", "--lazy", top / "root"], check=True)


@contextmanager
def _task(paths: list[Path], top: Path) -> Iterator[int]:
    # A session of its own without a terminal, and no pipe to us: CRIU could not restore those.
    ready = top / "ready"
    command = [sys.executable, "-I", "-S", _HERE / "watched.py", ready, *paths]
    with ExitStack() as opened:
        null = opened.enter_context(open(os.devnull, "r+b"))
        task = subprocess.Popen(
            command, stdin=null, stdout=null, stderr=null, start_new_session=True, cwd="/"
        )
        opened.callback(task.wait)
        opened.callback(task.kill)
        while not ready.exists():
            if task.poll() is not None:
                sys.exit("demo: the watching task did not start")
        yield task.pid


def _state(pid: int) -> str:
    status = Path(f"/proc/{pid}/status").read_text()
    return status.split("State:", 1)[1].splitlines()[0].strip()


def _say(text: str) -> None:
    sys.stdout.write(f"\n# {text}\n\n")
    sys.stdout.flush()


def _run(*arguments: str | Path) -> None:
    sys.stdout.write(f"$ irmapdb {shlex.join(map(str, arguments))}\n")
    sys.stdout.flush()
    done = subprocess.run([sys.executable, "-m", "irmapdb", *arguments], check=False)
    if done.returncode not in _DONE:
        sys.exit(f"demo: irmapdb ended with {done.returncode}")


def _criu(criu: Path, *arguments: str | Path) -> bool:
    # Whether it passed. Its errors are shown, and its last line.
    sys.stdout.write(f"$ criu {shlex.join(map(str, arguments))}\n")
    sys.stdout.flush()
    done = subprocess.run(
        [criu, *arguments, "-v4"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    lines = done.stdout.decode(errors="backslashreplace").splitlines()
    kept = [line for line in lines if re.search(r"Error .*fsnotify|Dumping F|Dumping fin", line)]
    sys.stdout.writelines(f"{line}\n" for line in kept or lines[-10:])
    return done.returncode == 0


def _version(criu: Path) -> tuple[int, ...]:
    done = subprocess.run([criu, "--version"], stdout=subprocess.PIPE, check=False)
    found = re.search(rb"^Version: (\d+)\.(\d+)", done.stdout, re.MULTILINE)
    return tuple(map(int, found.groups())) if found else ()


if __name__ == "__main__":
    main()
