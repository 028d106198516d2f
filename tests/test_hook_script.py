"""The shell script that CRIU executes, under each shell that may be /bin/sh."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from irmapdb.criu import hook_script
from irmapdb.criu.hook_runs import read_runs
from irmapdb.errors import FileError
from irmapdb.files import replace_whole
from irmapdb.kernel.proc.tasks import read_task
from tests.support.features import require, require_program, require_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SHELLS = ("dash", "bash", "busybox")
LINE = "irmapdb-hook: not done: "
PIDS_CGROUPS = (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup"))


def read_starttime(pid: int) -> int:
    task = read_task(pid)
    assert task is not None
    return task.starttime


class Hook:
    """The script in `directory`, executed by `shell` as /bin/sh; a program in place of ours."""

    def __init__(self, directory: Path, shell: str, program_name: str = "program") -> None:
        require_program(shell)
        self.run_dir = directory / "run"
        self.work = directory / "work"
        self.work.mkdir()
        self.config = directory / "irmapdb.toml"
        self.program = directory / program_name
        self.started = directory / "started"
        shell_link = directory / "sh"
        shell_link.symlink_to(str(shutil.which(shell)))
        text = hook_script.script_text(
            self.program, [Path("/etc/criu/x.conf")], config_file=self.config, run=self.run_dir
        )
        assert text.startswith(b"#!/bin/sh\n")
        self.script = directory / "irmapdb-hook"
        self.script.write_bytes(text.replace(b"/bin/sh", os.fsencode(shell_link)))
        self.script.chmod(0o755)

    def write_program(self, body: str = "exit 0") -> None:
        self.program.write_text(f"#!/bin/sh\necho started >>{self.started}\n{body}\n")
        self.program.chmod(0o755)

    def starts(self) -> int:
        return len(self.started.read_text().split()) if self.started.exists() else 0

    def __call__(
        self,
        action: str = "pre-dump",
        pid: int | str | None = None,
        before: Callable[[], object] = lambda: None,
        **environment: str,
    ) -> subprocess.CompletedProcess[str]:
        """Call it; `before` runs first in the process that executes it."""
        # As podman has CRIU call it: no HOME, no PATH, standard input closed.
        variables = {"CRTOOLS_SCRIPT_ACTION": action, **environment}
        variables["CRTOOLS_INIT_PID"] = str(os.getpid() if pid is None else pid)
        return subprocess.run(
            [self.script],
            cwd=self.work,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            preexec_fn=lambda: (os.close(0), before()),
        )

    def forget(self) -> None:
        for mark in self.run_dir.glob("hook-*"):
            mark.unlink()


@pytest.fixture(params=SHELLS)
def hook(request: pytest.FixtureRequest, tmp_path: Path) -> Hook:
    return Hook(tmp_path, request.param)


def test_other_actions_start_nothing(hook: Hook) -> None:
    hook.write_program("exit 99")
    for action in ("post-dump", "network-lock", "pre-restore", "irmapdb-check", ""):
        done = hook(action)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert hook.starts() == 0
    assert not hook.run_dir.exists()


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("name", ["a b", "it's", "$HOME", "new\nline", "*", "caf\udce9", '"', "\\"])
def test_odd_program_paths(shell: str, name: str, tmp_path: Path) -> None:
    hook = Hook(tmp_path, shell, name)
    hook.write_program("echo said >&2; exit 0")
    done = hook()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "said\n")
    assert hook.starts() == 1


def test_the_program_gets_the_call(hook: Hook) -> None:
    hook.write_program('echo "$CRTOOLS_INIT_PID $CRTOOLS_IMAGE_DIR $PWD $(readlink /proc/$$/fd/0)"')
    done = hook(pid=4711, CRTOOLS_IMAGE_DIR="/proc/1/fd/5")
    assert done.stderr == f"4711 /proc/1/fd/5 {hook.work} /dev/null\n"


def test_the_second_call_of_one_criu_does_nothing(hook: Hook) -> None:
    hook.write_program()
    assert [hook().returncode for _ in range(3)] == [0, 0, 0]
    assert hook.starts() == 1
    hook(pid=1)  # another tree
    assert hook.starts() == 2
    for mark in hook.run_dir.glob("hook-*"):
        uptime_s = float(Path("/proc/uptime").read_text().split()[0])
        mark.write_text(f"{int(uptime_s) - 11}\n")
    hook()
    assert hook.starts() == 3


FAILURES: dict[str, Callable[[Path], None]] = {
    "missing": lambda program: program.unlink(),
    "not executable": lambda program: program.chmod(0o644),
    "a directory": lambda program: (program.unlink(), program.mkdir()),
    "no interpreter": lambda program: program.write_text("#!/no/such/python\n"),
    "import": lambda program: program.write_text(
        "#!/bin/sh\necho 'Traceback'\necho 'No module'\nexit 1\n"
    ),
    "killed": lambda program: program.write_text("#!/bin/sh\nkill -9 $$\n"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_no_damage_of_irmapdb_fails_the_dump(hook: Hook, failure: str) -> None:
    hook.write_program()
    FAILURES[failure](hook.program)
    done = hook()
    assert done.returncode == 0
    assert done.stderr.startswith(LINE)
    assert len(done.stderr.splitlines()) == 1
    hook.forget()
    assert hook(IRMAPDB_HOOK_STRICT="True").returncode == 1
    hook.config.write_text("[hook]\nstrict = true\n")
    hook.forget()
    assert hook().returncode == 1
    hook.forget()
    assert hook(IRMAPDB_HOOK_STRICT="0").returncode == 0


@pytest.mark.parametrize(
    ("text", "strict"),
    [
        ("[hook]\nstrict = true", True),
        ("[scan]\npaths = []\n\n[ hook ] # ours\n\tstrict=true # yes", True),
        ("hook.strict = true\n", True),
        ("[hook]\nstrict = false\n", False),
        ("[hook]\n# strict = true\n", False),
        ("[other]\nstrict = true\n", False),
        ("strict = true\n[hook]\n", False),
        ("", False),
        ("\0\xff[hook", False),
    ],
)
def test_strict_of_the_configuration(hook: Hook, text: str, strict: bool) -> None:  # noqa: FBT001
    hook.config.write_text(text)
    assert hook().returncode == int(strict)


def test_only_the_hook_itself_fails_the_dump(hook: Hook) -> None:
    for code, expected in ((99, 1), (0, 0), (1, 0), (2, 0), (98, 0), (127, 0)):
        hook.write_program(f"exit {code}")
        assert hook().returncode == expected, code
        hook.forget()


@contextlib.contextmanager
def process_limit(most: int) -> Iterator[Callable[[], object]]:
    """A cgroup with that limit; the function moves the calling process into it."""
    top = next((one for one in PIDS_CGROUPS if (one / "cgroup.procs").exists()), None)
    require(top, "a cgroup with pids.max")
    path = top / f"irmapdb-hook-{os.getpid()}"
    path.mkdir()
    try:
        (path / "pids.max").write_text(f"{most}\n")
        yield lambda: (path / "cgroup.procs").write_text("0\n")
    finally:
        end_s = time.monotonic() + 60
        while (path / "cgroup.procs").read_text():  # a sleep of the script
            assert time.monotonic() < end_s
            time.sleep(0.05)
        path.rmdir()


@pytest.mark.parametrize(
    ("shell", "strict"), [("dash", 0), ("dash", 1), ("busybox", 0), ("bash", 0)]
)
def test_a_shell_that_cannot_fork_fails_no_dump(shell: str, strict: int, tmp_path: Path) -> None:
    require_root()
    hook = Hook(tmp_path, shell)
    hook.write_program()
    with process_limit(1) as enter:
        done = hook(before=enter, IRMAPDB_HOOK_STRICT=str(strict))
    assert (done.returncode, hook.starts()) == (strict, 0)
    assert done.stderr.splitlines()[-1].startswith(LINE)


TRIVIAL = "{ read -r uptime </proc/uptime; } 2>/dev/null; exit 0"


def test_a_shell_without_descriptors_fails_no_dump(hook: Hook) -> None:
    hook.write_program()
    trivial = hook.script.with_name("trivial")
    trivial.write_text(f"{hook.script.read_text().splitlines()[0]}\n{TRIVIAL}\n")
    trivial.chmod(0o755)
    codes = []
    for most in range(3, 20):

        def limit(most: int = most) -> None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

        # With fewer, this shell cannot execute a script of one line.
        if subprocess.run([trivial], preexec_fn=limit, check=False).returncode == 0:
            codes.append(hook(before=limit).returncode)
            hook.forget()
    assert codes
    assert set(codes) == {0}


def test_without_irmapdb_old_files_of_scripts_do_not_pile_up(hook: Hook) -> None:
    hook.run_dir.mkdir(mode=0o700)
    old, new = ("hook-1-2-3", "reply-1-2"), ("hook-4-5-6", "reply-4-5")
    others = ("hook.log.old", "image-1-2", "warm.pid")
    for name in (*old, *new, *others):
        (hook.run_dir / name).touch()
        if name not in new:
            os.utime(hook.run_dir / name, (0, 0))
    assert hook().stderr.startswith(LINE)
    (mark,) = {path.name for path in hook.run_dir.iterdir()} - {*new, *others, "hook.log"}
    assert mark.startswith(f"hook-{os.getpid()}-")


def test_options_that_bash_takes_from_the_environment(hook: Hook) -> None:
    for body in ("exit 0", "exit 1"):
        hook.write_program(body)
        assert hook(SHELLOPTS="errexit:nounset").returncode == 0
        hook.forget()
    assert hook.starts() == 2


def test_no_call_of_criu(hook: Hook) -> None:
    hook.write_program('echo "init: $CRTOOLS_INIT_PID"')
    for pid in ("", "none", "-1", "../../etc/passwd"):
        assert hook(pid=pid).stderr == f"init: {pid}\n"
    assert hook.starts() == 4
    assert not list(hook.run_dir.parent.rglob("passwd"))


# --- the service ----------------------------------------------------------------------------------


@contextlib.contextmanager
def service(hook: Hook, reply: str | None) -> Iterator[list[list[str]]]:
    """Replies to each request with this line; None: it reads them and says nothing."""
    hook.run_dir.mkdir(mode=0o700, exist_ok=True)
    fifo = hook.run_dir / "warm.fifo"
    os.mkfifo(fifo, 0o600)
    pid = os.getpid()
    (hook.run_dir / "warm.pid").write_text(f"{pid} {read_starttime(pid)}\n")
    requests: list[list[str]] = []
    listen = os.open(fifo, os.O_RDWR)

    def serve() -> None:
        while (line := os.read(listen, 4096)) != b"end\n":
            requests.append(line.decode().rstrip("\n").split(" "))
            if reply is not None:
                fd = os.open(hook.run_dir / requests[-1][-1], os.O_WRONLY | os.O_NONBLOCK)
                os.write(fd, f"{reply}\n".encode())
                os.close(fd)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield requests
    finally:
        os.write(listen, b"end\n")
        thread.join()
        os.close(listen)
        fifo.unlink()


def test_the_service_answers(hook: Hook) -> None:
    hook.write_program()
    with service(hook, "0 3 watches: 3 proved") as requests:
        done = hook(pid=4711, CRTOOLS_IMAGE_DIR="/proc/99/fd/7")
        assert (done.returncode, done.stderr) == (0, "irmapdb-hook: 3 watches: 3 proved\n")
        hook(pid=4711)  # the second call
    assert hook.starts() == 0
    ((version, action, init, criu, criu_start, images, name),) = requests
    assert (version, action, init, images) == ("1", "pre-dump", "4711", "7")
    assert (int(criu), int(criu_start)) == (os.getpid(), read_starttime(os.getpid()))
    assert name.startswith("reply-")
    assert not list(hook.run_dir.glob("reply-*"))


@pytest.mark.parametrize(("code", "exit_code", "starts"), [(0, 0, 0), (1, 1, 0), (2, 0, 1)])
def test_the_services_code(hook: Hook, code: int, exit_code: int, starts: int) -> None:
    hook.write_program()
    with service(hook, f"{code} text"):
        assert hook().returncode == exit_code
    assert hook.starts() == starts


SEARCHED = "3 the service searches\n0 the service: 3 watches"


@pytest.mark.parametrize("state", ["missing", "no interpreter", "not executable"])
def test_a_host_without_python_waits_for_the_search(hook: Hook, state: str) -> None:
    hook.write_program()
    FAILURES[state](hook.program)
    with service(hook, SEARCHED) as requests:
        done = hook()
    assert (done.returncode, done.stderr) == (0, "irmapdb-hook: the service: 3 watches\n")
    ((_, action, *_),) = requests
    assert action == "search"
    with service(hook, "3 the service searches\n2 why"):
        hook.forget()
        done = hook()
    assert done.stderr.startswith(LINE)
    assert len(done.stderr.splitlines()) == 1


def who_has_open(directory: Path) -> set[str]:
    """The processes that have a file of this directory open."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(link).startswith(f"{directory}/"):
                found.add(link.parent.parent.name)
    return found - {str(os.getpid())}


@pytest.mark.parametrize("trap", ["", "trap '' PIPE; "], ids=["default", "SIGPIPE ignored"])
def test_no_process_is_left(hook: Hook, trap: str) -> None:
    """No process keeps CRIU's descriptors open for 10 s."""
    with service(hook, SEARCHED):
        subprocess.run(
            ["/bin/sh", "-c", f'{trap}"$0"; exit $?', hook.script],
            env={"CRTOOLS_SCRIPT_ACTION": "pre-dump", "CRTOOLS_INIT_PID": "1"},
            cwd=hook.work,
            check=True,
        )
        deadline_s = time.monotonic() + 5
        while left := who_has_open(hook.run_dir):
            assert time.monotonic() < deadline_s, left
            time.sleep(0.01)


@pytest.mark.parametrize("reply", ["", "garbage", "0x1 y", "-1 z"])
def test_a_service_that_sends_nonsense(hook: Hook, reply: str) -> None:
    hook.write_program()
    with service(hook, reply):
        assert hook().returncode == 0
    assert hook.starts() == 1


def test_a_slow_service_and_its_last_image(hook: Hook) -> None:
    require_root()
    hook.write_program()
    pid = os.getpid()
    with service(hook, None):
        hook()
        assert hook.starts() == 1  # it has no image of that tree
        hook.forget()
        (hook.run_dir / f"image-{pid}-{read_starttime(pid)}").write_bytes(b"image")
        (hook.work / "irmap-cache").write_bytes(b"old")
        done = hook()
        assert (done.returncode, hook.starts()) == (0, 1)
        assert "last is used" in done.stderr
        assert (hook.work / "irmap-cache").read_bytes() == b"image"
        (run,) = read_runs(hook.run_dir).last
        assert (run.by, run.outcome, run.pid) == ("script", "last image", pid)
        assert "last is used" in run.text
        assert [path.name for path in hook.work.iterdir()] == ["irmap-cache"]
        # In a directory that others own or can write, the script makes no file.
        (hook.work / "irmap-cache").unlink()
        for number, change in enumerate(
            (
                lambda: hook.work.chmod(0o777),
                lambda: hook.work.chmod(0o770),
                lambda: (hook.work.chmod(0o700), os.chown(hook.work, 1, 1)),
            )
        ):
            hook.forget()
            change()
            hook()
            assert hook.starts() == 2 + number
            assert list(hook.work.iterdir()) == []


def test_a_script_that_is_killed_leaves_nothing_that_is_not_removed(hook: Hook) -> None:
    require_root()
    pid = os.getpid()
    with service(hook, None):
        image = hook.run_dir / f"image-{pid}-{read_starttime(pid)}"
        image.touch()
        os.truncate(image, 64 << 30)  # takes longer than the test
        script = subprocess.Popen(
            [hook.script],
            cwd=hook.work,
            env={"CRTOOLS_SCRIPT_ACTION": "pre-dump", "CRTOOLS_INIT_PID": str(pid)},
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            while not any(hook.work.iterdir()):
                assert script.poll() is None
        finally:
            os.killpg(script.pid, signal.SIGKILL)
            script.wait()
    assert any(hook.work.iterdir())
    replace_whole(hook.work / "irmap-cache", b"image")
    assert [path.name for path in hook.work.iterdir()] == ["irmap-cache"]


def test_without_a_service_no_script_blocks(hook: Hook) -> None:
    hook.write_program()
    with service(hook, "0 never read"):
        pass
    # The FIFO is left, and no service reads it: its process is gone, or another one.
    os.mkfifo(hook.run_dir / "warm.fifo")
    for starts, text in enumerate(("", "x y", "4194304 1", f"{os.getpid()} 1"), 1):
        (hook.run_dir / "warm.pid").write_text(text + "\n")
        assert hook().returncode == 0
        assert hook.starts() == starts
        hook.forget()


def test_a_stopped_service_whose_fifo_is_full(hook: Hook) -> None:
    hook.write_program()
    hook.run_dir.mkdir(mode=0o700)
    fifo = hook.run_dir / "warm.fifo"
    os.mkfifo(fifo)
    fd = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(fd, bytes(4096))
    stopped = subprocess.Popen(["sleep", "1000"])
    try:
        stopped.send_signal(signal.SIGSTOP)
        text = f"{stopped.pid} {read_starttime(stopped.pid)}\n"
        (hook.run_dir / "warm.pid").write_text(text)
        assert hook().returncode == 0
        assert hook.starts() == 1
        assert not list(hook.run_dir.glob("reply-*"))
    finally:
        os.close(fd)
        stopped.kill()
        stopped.wait()


class Searching:
    """A service of the test that takes one request, and replies step by step."""

    def __init__(self, hook: Hook) -> None:
        hook.run_dir.mkdir(mode=0o700)
        self._fifo = hook.run_dir / "warm.fifo"
        os.mkfifo(self._fifo, 0o600)
        self._listen = os.open(self._fifo, os.O_RDWR)
        (hook.run_dir / "warm.pid").write_text(f"{os.getpid()} {read_starttime(os.getpid())}\n")
        self.script = subprocess.Popen(
            [hook.script],
            cwd=hook.work,
            env={"CRTOOLS_SCRIPT_ACTION": "pre-dump", "CRTOOLS_INIT_PID": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        name = os.read(self._listen, 4096).decode().split()[-1]
        self.reply = hook.run_dir / name
        self._to_script = os.open(self.reply, os.O_WRONLY | os.O_NONBLOCK)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._to_script)
        os.close(self._listen)
        if self.script.poll() is None:
            self.script.kill()
        self.script.communicate()

    def say(self, line: str) -> None:
        os.write(self._to_script, f"{line}\n".encode())

    def wait_for_sleep(self, other_than: int = 0) -> int:
        """The process that ends the wait of the script."""
        children = Path(f"/proc/{self.script.pid}/task/{self.script.pid}/children")
        end_s = time.monotonic() + 60
        while time.monotonic() < end_s:
            for pid in map(int, children.read_text().split()):
                with contextlib.suppress(OSError):
                    comm = Path(f"/proc/{pid}/comm").read_text().strip()
                    if comm in {"sleep", "busybox"} and pid != other_than:
                        return pid
        raise AssertionError("the script waits for nothing")


def take_number(pid: int) -> subprocess.Popen[bytes] | None:
    """A process with this number; None if another process has it."""
    last = Path("/proc/sys/kernel/ns_last_pid")
    while not Path(f"/proc/{pid}").exists():
        last.write_text(str(pid - 1))
        process = subprocess.Popen(["sleep", "1000"])
        if process.pid == pid:
            return process
        process.kill()
        process.wait()
    return None


def has_ended(pid: int) -> bool:
    task = read_task(pid)
    return task is None or task.state == "Z"


def test_a_process_with_the_number_of_an_ended_child_is_not_killed(hook: Hook) -> None:
    require_root()
    with Searching(hook) as service:
        first = service.wait_for_sleep()
        service.say("3 the service searches")
        service.wait_for_sleep(other_than=first)
        end_s = time.monotonic() + 60
        while not has_ended(first):
            assert time.monotonic() < end_s
            time.sleep(0.01)
        other = take_number(first)  # None: this shell keeps the number of an ended child
        try:
            service.say("0 done")
            _, said = service.script.communicate(timeout=60)
            assert said == "irmapdb-hook: done\n"
            assert other is None or other.poll() is None
        finally:
            if other is not None:
                other.kill()
                other.wait()


def test_a_removed_reply_leaves_no_file(hook: Hook) -> None:
    """The service, or another hook, removes the FIFO of a script that it takes for an old one."""
    with Searching(hook) as service:
        first = service.wait_for_sleep()
        service.reply.unlink()
        service.say("3 the service searches")
        service.wait_for_sleep(other_than=first)
        service.say("0 done")
        _, said = service.script.communicate(timeout=60)
        assert said == "irmapdb-hook: done\n"
    assert not list(hook.run_dir.glob("reply-*"))


def test_a_service_that_ends_at_the_request_leaves_no_file(hook: Hook, tmp_path: Path) -> None:
    hook.write_program()
    programs = tmp_path / "bin"
    programs.mkdir()
    fifo = hook.run_dir / "warm.fifo"
    (programs / "mkfifo").write_text(f'#!/bin/sh\nrm -f {fifo}\nexec /usr/bin/mkfifo "$@"\n')
    (programs / "mkfifo").chmod(0o755)
    text = hook.script.read_text()
    assert text.count("\nPATH=") == 1
    hook.script.write_text(text.replace("\nPATH=", f"\nPATH={programs}:"))
    hook.run_dir.mkdir(mode=0o700)
    os.mkfifo(fifo)
    (hook.run_dir / "warm.pid").write_text(f"{os.getpid()} {read_starttime(os.getpid())}\n")
    done = hook()
    assert (done.returncode, done.stderr, hook.starts()) == (0, "", 1)
    assert not fifo.exists()
    assert not list(hook.run_dir.glob("reply-*"))


# --- where it is installed ------------------------------------------------------------------------


def test_the_script_is_removed_with_the_last_file_that_calls_it(tmp_path: Path) -> None:
    script, program = tmp_path / "lib" / "irmapdb" / "hook", tmp_path / "program"
    one, two = tmp_path / "one.conf", tmp_path / "two" / "runc.conf"
    two.parent.mkdir()
    for file in (one, two):
        file.write_text(f"action-script {script}\n")
        hook_script.write_script(script, program, file)
        hook_script.write_script(script, program, file)
    assert script.stat().st_mode & 0o777 == 0o755
    assert script.read_text().count("# called from: ") == 2
    one.unlink()
    assert not hook_script.release_script(script, one)
    two.write_text("")
    assert hook_script.release_script(script, two)
    assert not script.parent.exists()
    assert not hook_script.release_script(script, two)


def test_a_program_of_others_is_never_removed(tmp_path: Path) -> None:
    program = tmp_path / "irmapdb-hook"
    program.write_text("#!/usr/bin/python3\nfrom irmapdb.criu.hook import main\n")
    assert not hook_script.release_script(program, tmp_path / "runc.conf")
    assert program.exists()


def test_no_script_where_others_can_replace_it(tmp_path: Path) -> None:
    public = tmp_path / "public"
    public.mkdir()
    public.chmod(0o777)
    with pytest.raises(FileError, match="belongs to others"):
        hook_script.write_script(public / "hook", tmp_path / "program", tmp_path / "runc.conf")
    assert list(public.iterdir()) == []
