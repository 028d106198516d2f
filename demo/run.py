"""`make demo`: the main job on a live process, with a rename between pre-dump and dump."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_HERE = Path(__file__).parent
_DONE = (0, 3)


def main() -> None:
    """Run the session that the README shows."""
    with tempfile.TemporaryDirectory(prefix="irmapdb-demo-", dir="/var/tmp") as scratch:
        tree, work = Path(scratch, "srv"), Path(scratch, "ckpt")
        for directory in (tree / "conf", tree / "data", work):
            directory.mkdir(parents=True)
        for name in ("conf/app.toml", "data/in.csv", "data/Caf\udce9 \n.txt"):
            (tree / name).write_text("x\n")
        watched = [
            tree / "conf/app.toml",
            tree / "data",
            tree / "data/in.csv",
            tree / "data/Caf\udce9 \n.txt",
            Path("/etc/passwd"),
            Path("/dev/shm"),
        ]
        with _task(watched) as pid:
            _say("A process watches files and directories. Before the checkpoint, while it runs:")
            _run("pre-dump", "-t", str(pid), "-D", work)
            _say("A log rotation, say: a watched file gets another name.")
            (tree / "data/in.csv").rename(tree / "data/in.csv.1")
            sys.stdout.write(f"$ mv {tree}/data/in.csv {tree}/data/in.csv.1\n")
            _say("The checkpoint: the task is stopped for as long as it takes to confirm.")
            _run("dump", "-t", str(pid), "-D", work)
            _say(f"It runs on ({_state(pid)}). This is what CRIU will load:")
            _run("show", work / "irmap-cache")
            _say("And this is what the database knows of the file that was renamed:")
            question = "SELECT kind, old_path, path, reason FROM change WHERE old_path IS NOT NULL"
            _run("sql", "--db", work / "irmap.db", question)


@contextmanager
def _task(paths: list[Path]) -> Iterator[int]:
    command = [sys.executable, _HERE / "watched.py", *paths]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as task:
        assert task.stdout is not None
        if task.stdout.readline() != "ready\n":
            sys.exit("demo: the watched process did not start")
        try:
            yield task.pid
        finally:
            task.kill()


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


if __name__ == "__main__":
    main()
