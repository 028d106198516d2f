"""Runs as `irmapdb-hook`, CRIU's action script, and finds the paths before CRIU loads its cache.

CRIU executes it at every action, without arguments: CRTOOLS_SCRIPT_ACTION, CRTOOLS_INIT_PID and
CRTOOLS_IMAGE_DIR in the environment, its work dir as the cwd, its log as stdout and stderr. Any
exit code but 0 fails the dump. Facts: criu(8); run_shell_scripts() of criu/action-scripts.c and
cr_system_userns() of criu/util.c.

This process only waits; a child does the work (`irmapdb.criu.hook_job`). If the child cannot import
a module, crashes, or hangs in a system call, CRIU still gets exit code 0. So this module imports
very little. Another reason is that every other action must end at once.

CRIU gets its answer as soon as the child has written irmap-cache. Then the child waits until CRIU
has ended (`irmapdb.criu.hook_wait`), and stores its results: in its own session, with no file of
CRIU open, and with limits for time and memory. If it is killed then, only this run's history is
lost.
"""

from __future__ import annotations

import os
import stat
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal

    from irmapdb.config import Config, HookConfig
    from irmapdb.criu.hook_job import Done
    from irmapdb.criu.hook_runs import Outcome
else:
    import _signal as signal  # the import of signal takes 5 ms, and a paused container waits for it

__all__ = ["LOG_NAME", "SCRIPT_VARIABLE", "STRICT_EXIT_CODE", "attend", "execute", "main"]

SCRIPT_VARIABLE = "IRMAPDB_HOOK_SCRIPT"
"""CRIU's PID. Set by the installed shell script, which filters and remembers CRIU's calls."""

STRICT_EXIT_CODE = 99
"""The exit code for the script if the dump must fail. Python itself never ends with it."""

LOG_NAME = "irmapdb.log"
"""In the work dir; the previous log is kept beside it, with `.old` added."""

_LOG_LIMIT_BYTES = 1 << 20
_ACTION = "pre-dump"
_MEMORY = "/run/irmapdb"
_MEMORY_S = 10.0  # CRIU's second call of one action follows the first within milliseconds
_UNTOLD_S = 10.0  # for the child to report its time limit
_LEAST_S = 2.0  # no child is killed before this, because Python itself needs some time
_ALONE_S = 120  # for the child's work after CRIU has continued
_ALONE_NICE = 10
_ALONE_BYTES = 4 << 30  # of address space
_REAP_S = 1.0
_LINE_BYTES = 2000
_PID_DIGITS = 20
_MOST_FDS = 1 << 30


class _CallError(Exception):
    """The missing part of CRIU's environment, as text."""


def main() -> int:
    """The console script: CRIU's environment in, the exit code out."""
    code = _main()
    # Only with this code does the installed script fail the dump.
    return STRICT_EXIT_CODE if code and SCRIPT_VARIABLE in os.environ else code


def execute() -> None:
    """The same for the installed script. Never returns, because cleaning up would take time."""
    os._exit(main())


def _main() -> int:
    action = os.environ.get("CRTOOLS_SCRIPT_ACTION")
    if action != _ACTION:
        if action is None:
            _say("this is CRIU's action script; for people there is `irmapdb hook --help`")
        return 0
    try:
        return _attend_once()
    except BaseException as error:  # noqa: BLE001 nothing of ours may end CRIU's dump
        kind = "" if isinstance(error, _CallError) else f"{type(error).__name__}: "
        text = f"not done: {kind}{error}"
        _say(text)
        _log(_open_log(), text)
        _note_run(text)
        return int(_is_strict())


def attend(pid: int, images: str, *, until_stored: bool = False) -> int:
    """Serve one dump of the tree of `pid`, in the cwd; the exit code for CRIU.

    `images` is CRIU's images dir, or "". Never waits for longer than the configured time, or 2
    seconds. With `until_stored` it also waits until the results are stored.
    """
    started_s = time.monotonic()
    log_fd = _open_log()
    log_bytes = _size_of(log_fd)
    # SIGTERM and SIGHUP stop the hook; CRIU still gets exit code 0.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    listen_fd, tell_fd = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(listen_fd)
        _work(pid, images, started_s, tell_fd, log_fd)
    os.close(tell_fd)
    told: dict[str, str] = {}
    try:
        ended = _listen(listen_fd, started_s, told)
    except KeyboardInterrupt:
        ended = "was ended by a signal"
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    if ended:
        os.kill(child, signal.SIGKILL)
    code = 0
    if until_stored:
        os.waitpid(child, 0)
    elif "answered" not in told:
        code = _reap(child)
    if "code" in told:
        code = int(told["code"])
    else:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        told["say"] = f"not done: the worker {ended or how}"
        _log(log_fd, told["say"])
        _note_run(told["say"], pid, time.monotonic() - started_s)
        code = code or 1
    seen = ""
    if code != 0 and log_fd is not None:
        name = os.path.join(os.getcwd(), LOG_NAME)
        written = _size_of(log_fd) > log_bytes  # not on a full disk
        seen = f" (see {name})" if written else f" (no room for it in {name})"
    _say(told.get("say", "not done") + seen)
    return int(code != 0 and _is_strict(told))


def _attend_once() -> int:
    memory = "" if SCRIPT_VARIABLE in os.environ else _memory_of_call()
    if memory and _is_remembered(memory):
        return 0
    if not os.path.exists("/proc/self/fd/0"):
        os.open(os.devnull, os.O_RDONLY)  # CRIU closes stdin: no file of ours may get number 0
    try:
        return attend(_init_pid(), os.environ.get("CRTOOLS_IMAGE_DIR", ""))
    finally:
        _remember(memory)


def _init_pid() -> int:
    text = os.environ.get("CRTOOLS_INIT_PID")
    if text is None:
        raise _CallError("CRTOOLS_INIT_PID is not set: CRIU sets it to the root task")
    if not (text.isascii() and text.isdecimal() and len(text) <= _PID_DIGITS and int(text)):
        raise _CallError(f"CRTOOLS_INIT_PID is {text[:_PID_DIGITS]!r}, which is no process id")
    return int(text)


# --- the child ------------------------------------------------------------------------------------


def _work(pid: int, images: str, started_s: float, tell_fd: int, log_fd: int | None) -> None:
    # Never returns.
    code = 2
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        _quiet(tell_fd, log_fd)
        code = _serve(pid, images, started_s, tell_fd, log_fd)
    except BaseException:  # noqa: BLE001 the parent only needs to know that it was not done
        import traceback

        _log(log_fd, traceback.format_exc()[-_LINE_BYTES:])
    finally:
        os._exit(code)


def _quiet(tell_fd: int, log_fd: int | None) -> None:
    # Python's own messages at its end go to our log; CRIU's log gets one line. No other file of
    # CRIU stays open, because this process may outlive CRIU.
    target = os.open(os.devnull, os.O_WRONLY) if log_fd is None else log_fd
    for fd in (1, 2):
        os.dup2(target, fd)
    keep = sorted({2, tell_fd, target})
    for fd, following in zip(keep, [*keep[1:], _MOST_FDS], strict=True):
        os.closerange(fd + 1, following)
    # If memory is short, the dumped tasks are more important than this process.
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")
    except OSError:
        return


def _serve(pid: int, images: str, started_s: float, tell_fd: int, log_fd: int | None) -> int:
    import gc

    # Imports make no garbage, and the collector would take a tenth of the time.
    gc.disable()

    # Before everything that is slow, or may fail.
    problems: list[str] = []
    config, hook = _configuration(problems)
    _tell(tell_fd, "budget", str(hook.timeout_s))
    _tell(tell_fd, "strict", str(int(hook.strict)))

    from irmapdb.criu.hook_job import Job, serve
    from irmapdb.criu.hook_wait import find_criu, wait_for_end

    gc.freeze()
    gc.enable()

    criu = find_criu(os.environ.get(SCRIPT_VARIABLE, ""))
    work = os.getcwdb()
    took_s = 0.0

    def answer(done: Done) -> None:
        nonlocal took_s
        took_s = time.monotonic() - started_s
        found = [*problems, *done.problems]
        for line in (*found, *done.notes, done.summary):
            _log(log_fd, line)
        _tell(tell_fd, "say", done.summary)
        _tell(tell_fd, "code", str(int(bool(found) or not done.fresh)))

    def note(done: Done) -> None:
        incomplete = problems or done.problems
        outcome: Outcome = "incomplete" if incomplete else "done"
        if not done.fresh:
            outcome = "failed"
        _note_run(done.summary, pid, took_s, outcome, work, done)

    def too_late(done: Done) -> None:
        answer(done)
        note(done)
        os._exit(0)

    served = serve(
        Job(
            pid,
            images,
            config,
            hook,
            started_s,
            abandoned=lambda: _is_deaf(tell_fd),
            tell_budget=lambda seconds: _tell(tell_fd, "budget", str(seconds)),
            too_late=too_late,
        )
    )
    answer(served.done)
    if not served.done.fresh:
        note(served.done)
        return 0
    _tell(tell_fd, "answered", "")
    _leave_criu()
    note(served.done)  # after the dump, the task may be gone
    if criu is not None:
        wait_for_end(criu, pid)
    _limit_itself()
    for line in served.keep():
        _log(log_fd, line)
    return 0


def _configuration(problems: list[str]) -> tuple[Config, HookConfig]:
    from irmapdb import config as configuration
    from irmapdb.errors import ConfigError

    config, hook = configuration.Config(), configuration.HookConfig()
    try:
        config = configuration.load_config(configuration.path_in(os.environ))
        hook = config.hook
        hook = configuration.with_environment(hook, os.environ)
    except ConfigError as error:
        problems.append(str(error))
    return config, hook


def _tell(fd: int, word: str, text: str) -> None:
    line = f"{word} {text}".encode("utf-8", "backslashreplace")[:_LINE_BYTES]
    os.write(fd, line + b"\n")


def _leave_criu() -> None:
    # CRIU and the program that started it may end now, and the work dir may be removed or
    # unmounted.
    os.setsid()
    os.chdir("/")


def _limit_itself() -> None:
    import resource

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_ALONE_S)
    for kind, most in ((resource.RLIMIT_CPU, _ALONE_S), (resource.RLIMIT_AS, _ALONE_BYTES)):
        _, hard = resource.getrlimit(kind)
        if hard == resource.RLIM_INFINITY or hard > most:
            resource.setrlimit(kind, (most, most))
    os.setpriority(os.PRIO_PROCESS, 0, _ALONE_NICE)


def _note_run(
    text: str,
    pid: int | None = None,
    took_s: float | None = None,
    outcome: Outcome = "failed",
    work: bytes = b"",
    done: Done | None = None,
) -> None:
    # For `irmapdb hook --status`. CRIU has its answer already, or gets none.
    try:
        from irmapdb.criu.hook_runs import HookRun, append_run
        from irmapdb.kernel.proc.containers import container_of

        name = None if pid is None else container_of(pid)
        container = "" if name is None else name.id
        paused = done is not None and done.paused
        numbers = (None, None) if done is None else (done.watches, done.resolved)
        run = HookRun(
            time.time(), "hook", outcome, took_s, paused, *numbers, pid, container, work, text
        )
        append_run(os.fsencode(_MEMORY), run)
    except Exception:  # noqa: BLE001 only this line is missing then
        return


def _is_deaf(tell_fd: int) -> bool:
    # Whether the parent is gone. Not by its pid, because a child of a search may call this too.
    import select

    poll = select.poll()
    poll.register(tell_fd, 0)
    return bool(poll.poll(0))  # POLLERR: the other end is closed


# --- the parent -----------------------------------------------------------------------------------


def _listen(fd: int, started_s: float, told: dict[str, str]) -> str:
    # Reads the child's messages. Returns why it must be killed; "" if it ended itself.
    import select

    poll = select.poll()
    poll.register(fd, select.POLLIN)
    rest = b""
    while True:
        budget_s = float(told["budget"]) if "budget" in told else _UNTOLD_S
        end_s = started_s + max(budget_s, _LEAST_S)
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            return f"did not end in {max(budget_s, _LEAST_S):g} s"
        if not poll.poll(min(left_s, 60.0) * 1000):
            continue
        data = os.read(fd, 1 << 16)
        if not data:
            return ""
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            word, _, text = line.decode("utf-8", "backslashreplace").partition(" ")
            told[word] = text
        if "answered" in told:
            return ""


def _reap(child: int) -> int:
    # The exit code, or the signal as a negative number. We do not wait for a child that hangs in
    # the kernel: it is killed, and ends when the call returns. No pidfd: a sandbox may deny it.
    end_s = time.monotonic() + _REAP_S
    pause_s = 100e-6
    while time.monotonic() < end_s:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.01)
    return -signal.SIGKILL


def _is_strict(told: dict[str, str] | None = None) -> bool:
    # From the child; or only from the environment, if the child has not sent it.
    if told and "strict" in told:
        return told["strict"] == "1"
    return os.environ.get("IRMAPDB_HOOK_STRICT", "").lower() in {"1", "true", "yes"}


# --- the second call ------------------------------------------------------------------------------


def _memory_of_call() -> str:
    # A file for one dump of one CRIU process. A pid alone may be used again.
    parent = os.getppid()
    with open(f"/proc/{parent}/stat", "rb") as file:
        stat = file.read()
    starttime = stat[stat.rindex(b")") + 2 :].split()[19].decode()
    return f"{_MEMORY}/hook-{parent}-{starttime}-{_init_pid()}"


def _is_remembered(memory: str) -> bool:
    try:
        return abs(time.time() - os.lstat(memory).st_mtime) < _MEMORY_S
    except OSError:
        return False


def _remember(memory: str) -> None:
    # Removes the older files too.
    try:
        os.makedirs(_MEMORY, mode=0o700, exist_ok=True)
        for name in os.listdir(_MEMORY):
            old = os.path.join(_MEMORY, name)
            if (
                name.startswith(("hook-", "reply-"))
                and time.time() - os.lstat(old).st_mtime > _MEMORY_S
            ):
                os.unlink(old)
        if not memory:
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(memory, flags, 0o600)
        os.utime(fd)
        os.close(fd)
    except OSError:
        return  # then the second call does the work again


# --- messages -------------------------------------------------------------------------------------


def _open_log() -> int | None:

    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        if os.path.lexists(LOG_NAME) and os.lstat(LOG_NAME).st_size > _LOG_LIMIT_BYTES:
            os.rename(LOG_NAME, LOG_NAME + ".old")
        fd = os.open(LOG_NAME, flags, 0o600)
    except OSError as error:
        _say(f"cannot write {LOG_NAME}: {error.strerror}")
        return None
    status = os.fstat(fd)
    # With a second link, it may be a file of root that another user has linked here.
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        os.close(fd)
        _say(f"cannot write {LOG_NAME}: no regular file with one link")
        return None
    return fd


def _size_of(fd: int | None) -> int:
    return 0 if fd is None else os.fstat(fd).st_size


def _one_line(text: str) -> str:
    # For example the work dir's name. No import: this also reports failed imports.
    return text if text.isprintable() else ascii(text)[1:-1]


def _log(fd: int | None, text: str) -> None:
    if fd is None:
        return

    now = time.strftime("%Y-%m-%d %H:%M:%S")
    line = f"{now} [{os.getpid()}] {_one_line(text)}\n"
    try:
        os.write(fd, line.encode("utf-8", "backslashreplace"))
    except OSError:
        return  # a full disk


def _say(text: str) -> None:
    line = f"irmapdb-hook: {_one_line(text)}\n"
    try:
        os.write(2, line.encode("utf-8", "backslashreplace"))
    except OSError:
        return


if __name__ == "__main__":
    sys.exit(main())
