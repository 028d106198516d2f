"""Wrong usage is one line: the word that is wrong, and the next step. Of every option."""

from __future__ import annotations

import ast
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.main import get_command

from irmapdb import commands
from irmapdb.commands.exit import line_of
from irmapdb.errors import IrmapError
from irmapdb.image import cache
from irmapdb.model import CacheEntry
from irmapdb.store import revisions
from tests.support.cli import irmapdb

if TYPE_CHECKING:
    from collections.abc import Iterator


def _every_option() -> list[tuple[str, str, str]]:
    """Command, option, and the name of its value: "" for a flag."""
    found = []

    def walk(command: object, path: str) -> None:
        for name, child in getattr(command, "commands", {}).items():
            walk(child, f"{path} {name}".strip())
        if not path or getattr(command, "commands", None):
            return
        for parameter in command.params:
            name = parameter.opts[0]
            if name.startswith("-"):
                flag = getattr(parameter, "is_flag", False) or getattr(parameter, "count", False)
                found.append((path, name, "" if flag else "value"))

    walk(get_command(commands.app), "")
    return found


OPTIONS = _every_option()
VALUED = [(command, option) for command, option, wants in OPTIONS if wants]


def _is_one_line(done, code: int = 2) -> bool:
    assert "Traceback" not in done.err
    return (done.code, done.out, done.err.count("\n")) == (code, "", 1) and done.err.startswith(
        "irmapdb: "
    )


@pytest.mark.parametrize(("command", "option"), VALUED)
def test_an_option_with_an_empty_value_is_refused(
    command: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = irmapdb(*command.split(), option, "")
    assert _is_one_line(done), done
    assert f"{option} '': an empty value; give one" in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("command", "option"), VALUED)
def test_an_option_without_its_value_is_refused(command: str, option: str) -> None:
    done = irmapdb(*command.split(), option)
    assert _is_one_line(done), done
    assert f"{option}: its value is missing; `irmapdb {command} --help`" in done.err


@pytest.mark.parametrize(
    ("words", "values"),
    [
        ("hook --print", "criu, runc, crun, podman"),
        ("hook --install", "criu, runc, crun, podman"),
        ("ps --by", "user, container, unit, process, directory"),
        ("--show-completion", "bash, zsh, fish"),
        ("pre-dump --db", ""),
        ("fleet push --to", ""),
    ],
)
def test_an_option_without_its_value_is_refused_with_the_values_it_takes(
    words: str, values: str
) -> None:
    done = irmapdb(*words.split())
    assert _is_one_line(done), done
    assert done.err.endswith(f"; its values are {values}\n" if values else "explains it\n")


@pytest.mark.parametrize(("command", "option", "wants"), OPTIONS)
def test_an_option_that_is_misspelt_is_refused(command: str, option: str, wants: str) -> None:
    if not option.startswith("--"):
        return
    done = irmapdb(*command.split(), f"{option}x")
    assert _is_one_line(done), done
    assert f"{option}x: irmapdb {command} has no such option; " in done.err
    if not wants:
        assert _is_one_line(irmapdb(*command.split(), f"{option}=1"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        *(
            (f"{command} -t {value}", f"-t {value}: not a process id; give the pid of the tree's")
            for command in ("pre-dump", "dump", "check", "audit", "ps", "hook")
            for value in ("abc", "0", "-1", "1.5", "0x10")
        ),
        ("pre-dump --tree=abc", "--tree abc: not a process id; give the pid"),
        ("pre-dump 4711", "4711: irmapdb pre-dump takes no such argument; did you mean -t 4711?"),
        ("dump -D img 4711", "did you mean -t 4711?"),
        ("check 4711", "did you mean -t 4711?"),
        ("audit 4711", "did you mean -t 4711?"),
        ("4711", "did you mean `irmapdb pre-dump -t 4711`?"),
        *(
            (command, f"irmapdb {command} needs -t PID (--tree) or --container NAME; give the pid")
            for command in ("pre-dump", "dump")
        ),
        ("check", "check needs one of -t PID, --container NAME, --all and --images ARCHIVE"),
        ("check --all -t 1", "check needs one of -t PID"),
        *(
            (f"{command} -t 1 --container web", "-t 1 beside --container web; give one of them")
            for command in ("pre-dump", "dump", "audit", "ps", "hook")
        ),
        ("hook --install runc --container web", "-t and --container do not go together"),
        ("pre-dump --name web", "did you mean --container?"),
        ("audit my.db", "did you mean --db my.db?"),
        ("prune /", "did you mean -W /?"),
        *(
            (f"hook {option} {engine}", f"use {option} runc")
            for option in ("--install", "--uninstall", "--print")
            for engine in ("containerd", "docker", "CRI-O")
        ),
        ("hook --install rnuc", "did you mean --install runc?"),
        ("hook --install lxc", "--install lxc: not one of criu, runc, crun, podman; write"),
        ("convert a b --to jsn", "--to jsn: not one of pb, db, json; did you mean --to json?"),
        ("prune --keep-runs 0", "--keep-runs 0: too small; give 1 or more"),
        ("prune --keep-rows x", "--keep-rows x: not a whole number; write --keep-rows 10"),
        ("sql --limit -1", "--limit -1: too small; give 0 or more"),
        ("sql --timeout x", "--timeout x: not a number of seconds; write --timeout 2.5"),
        ("dump -t 1 --timeout x", "--timeout x: not a number of seconds"),
        ("predump -t 1", "predump: no such command of irmapdb; did you mean pre-dump or dump?"),
        ("db upgarde", "upgarde: no such command of irmapdb db; did you mean upgrade?"),
        ("-t 4711", "options go after the command: `irmapdb pre-dump -t …`"),
        (
            "--db x audit",
            "--db: irmapdb has no such option; options go after the command: `irmapdb aud",
        ),
        ("help pre-dump", "did you mean `irmapdb COMMAND --help`?"),
        *(
            (f"pre-dump {option} 4711", f"did you mean {meant}?")
            for option, meant in (
                ("--pid", "--tree"),
                ("--process", "--tree"),
                ("-p", "--tree"),
                ("-T", "-t"),
                ("-d", "-D"),
                ("-db", "--db"),
                ("--tre", "--tree"),
                ("--trees", "--tree"),
                ("--database", "--db"),
                ("--dir", "--images-dir"),
                ("--images", "--images-dir"),
                ("--work_dir", "--work-dir"),
                ("--workdir", "--work-dir"),
                ("--scan-path", "--irmap-scan-path"),
                ("--log", "--log-file"),
                ("--verbose", "--verbosity"),
                ("--jsno", "--json"),
            )
        ),
        ("check --force-irmp", "did you mean --force-irmap?"),
        ("check --version 4.2", "did you mean --criu-version?"),
        ("prune --keep 3", "did you mean --keep-runs or --keep-rows?"),
        ("prune --keep-run 3", "did you mean --keep-runs?"),
        ("hook --instal runc", "did you mean --install?"),
        ("hook install runc", "did you mean --install runc?"),
        ("sql --zzz", "--zzz: irmapdb sql has no such option; `irmapdb sql --help` lists"),
        ("dump -t 1 --shell-job", "it is criu's: leave it away here, and give it to `criu dump`"),
        ("pre-dump -t 1 -j", "it is criu's: leave it away here, and give it to `criu pre-dump`"),
        ("sql -j", "`irmapdb sql --help` lists the options"),
        ("pre-dump -t 1 /", "did you mean -D /?"),
        ("show", "irmapdb show needs FILE; `irmapdb show --help` has examples"),
        ("convert a", "irmapdb convert needs DST"),
        ("lookup", "irmapdb lookup needs KEY"),
        ("show a \x1b[31m", r"\x1b[31m: irmapdb show takes no such argument"),
        ("hook --install \x1b[31m", r"--install \x1b[31m: not one of criu"),
        ("pre-dump -t \x1b[31m", r"-t \x1b[31m: not a process id"),
    ],
)
def test_the_line_has_the_next_step(words: str, said: str) -> None:
    done = irmapdb(*words.split(" "))
    assert _is_one_line(done), done
    assert said in done.err
    assert done.err.rstrip("\n").isprintable()


@pytest.mark.parametrize("words", ["show", "convert a", "convert"])
def test_an_argument_that_is_empty_is_refused(words: str) -> None:
    done = irmapdb(*words.split(), "")
    assert _is_one_line(done), done


# No memory, and Ctrl-C


@pytest.mark.parametrize("error", [MemoryError, KeyboardInterrupt, ImportError])
@pytest.mark.parametrize("command", ["db history", "db history --json"])
def test_an_interrupt_or_lack_of_memory_is_one_line(monkeypatch, error, command: str) -> None:
    def fail(*_: object) -> None:
        raise error("libx.so: failed to map segment")

    monkeypatch.setattr(revisions, "history", fail)
    done = irmapdb(*command.split())
    code, said = {
        MemoryError: (1, "out of memory"),
        KeyboardInterrupt: (130, "interrupted"),
        ImportError: (1, "failed to map segment; free some memory"),
    }[error]
    assert _is_one_line(done, code), done
    assert said in done.err


def test_ctrl_c_while_files_are_closed(monkeypatch) -> None:
    closing = commands.close_log

    def interrupted() -> None:
        monkeypatch.setattr(commands, "close_log", closing)
        raise KeyboardInterrupt

    monkeypatch.setattr(commands, "close_log", interrupted)
    done = irmapdb("db", "history")
    assert (done.code, done.err) == (130, "irmapdb: interrupted\n")


def _limited(*words: str | Path, mib: int) -> subprocess.CompletedProcess[str]:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (mib << 20, mib << 20))

    return subprocess.run(
        [sys.executable, "-m", "irmapdb", *map(str, words)],
        check=False,
        capture_output=True,
        text=True,
        preexec_fn=limit,
    )


def test_real_lack_of_memory_is_one_line(tmp_path: Path) -> None:
    image, large = tmp_path / "irmap-cache", tmp_path / "large"
    image.write_bytes(cache.encode_cache([CacheEntry(1, 2, b"/a")]))
    with large.open("wb") as file:
        file.write(image.read_bytes())
        file.truncate(400 << 20)
    assert irmapdb("import", image, "-W", tmp_path).code == 0
    for words in (
        ("show", large),
        ("convert", large, tmp_path / "out"),
        ("import", large, "-W", tmp_path),
    ):
        done = _limited(*words, mib=300)
        assert done.returncode == 1, done
        assert (done.stdout, done.stderr.count("\n")) == ("", 1), done
        assert done.stderr.startswith("irmapdb: ")
        assert "memory" in done.stderr, done


def test_ctrl_c_ends_a_command_in_one_line(tmp_path: Path) -> None:
    image = tmp_path / "irmap-cache"
    image.write_bytes(cache.encode_cache([CacheEntry(1, 2, b"/a")]))
    irmapdb("import", image, "-W", tmp_path)
    endless = "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n FROM c) SELECT max(n) FROM c"
    command = [
        sys.executable,
        "-m",
        "irmapdb",
        "sql",
        endless,
        "-W",
        str(tmp_path),
        "--timeout",
        "0",
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as task:
        database = os.fsencode(tmp_path / "irmap.db")
        while not _has_open(task.pid, database):
            assert task.poll() is None
            time.sleep(0.01)
        task.send_signal(signal.SIGINT)
        out, err = task.communicate(timeout=120)
    assert (task.returncode, out, err) == (130, "", "irmapdb: interrupted\n")


def _has_open(pid: int, path: bytes) -> bool:
    directory = f"/proc/{pid}/fd"
    return any(
        os.path.exists(f"{directory}/{fd}") and os.readlink(f"{directory}/{fd}").encode() == path
        for fd in os.listdir(directory)
    )


def _words_of_errors() -> Iterator[tuple[Path, str]]:
    """Every piece of text in a message or an advice that is raised below the command line."""
    for file in Path(commands.__file__).parents[1].rglob("*.py"):
        if "commands" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            is_error = isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                ("Error", "another_file")
            )
            is_part = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in {
                "message",
                "advice",
            }
            if is_error or is_part:
                for part in ast.walk(node):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield file, part.value


def test_no_error_below_the_command_line_names_an_option_of_ours() -> None:
    found = [
        (file, words)
        for file, words in _words_of_errors()
        # A command in backticks is whole; CRIU is called with options of its own.
        if re.search(r"(?<![\w-])-(?:-[a-z]|[DWtp]\b)", re.sub("`.*?`", "", words))
        and file.name not in {"decision.py", "dump.py"}
    ]
    assert not found


def test_every_setting_that_an_error_names_has_its_option() -> None:
    package = Path(commands.__file__).parents[1]
    text = "".join(file.read_text() for file in package.rglob("*.py"))
    named = set(re.findall(r"\b(?:remedy|about)=\"([^\"]+)\"", text))
    assert {"database", "scan path"} <= named
    for name in named:
        error = IrmapError("x", advice="name another", about=name, remedy=name)
        assert re.fullmatch(r"-\S+.* x; name another with -\S+.*", line_of(error)), name


_INTERRUPTED_IMPORT = """
import os, signal, sys
from irmapdb.__main__ import main

class Finder:
    def find_spec(name, path=None, target=None):
        if name == "{module}":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder)
sys.argv = ["irmapdb", "--version"]
main()
"""


@pytest.mark.parametrize("module", ["typer", "irmapdb.commands.group", "irmapdb.scratch"])
def test_an_interrupt_during_the_imports_prints_nothing(module):
    program = _INTERRUPTED_IMPORT.format(module=module)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


def test_a_process_that_ignores_interrupts_still_does():
    program = _INTERRUPTED_IMPORT.format(module="typer").replace(
        "sys.argv", "signal.signal(signal.SIGINT, signal.SIG_IGN)\nsys.argv"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"irmapdb ")
