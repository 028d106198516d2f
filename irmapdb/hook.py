"""`irmapdb-hook`: CRIU's action script, which finds the paths just before CRIU loads its cache.

CRIU executes it at every action, without arguments: CRTOOLS_SCRIPT_ACTION, CRTOOLS_INIT_PID and
CRTOOLS_IMAGE_DIR in the environment, its work dir as the cwd, its log as stdout and stderr. Any
exit code but 0 fails the dump. Facts: criu(8); run_shell_scripts() of criu/action-scripts.c and
cr_system_userns() of criu/util.c.

This process only waits; a child does the work (`irmapdb.hookjob`). Whatever becomes of the child,
an import that fails, a crash, a system call that never returns, CRIU gets its 0. That, and that
every other action ends at once, is why so little is imported here.
"""

from __future__ import annotations

import os
import stat
import sys
import time

__all__ = ["LOG_NAME", "SCRIPT_VARIABLE", "STRICT_EXIT_CODE", "attend", "main"]

SCRIPT_VARIABLE = "IRMAPDB_HOOK_SCRIPT"
"""Set by the installed shell script, which has filtered CRIU's calls and remembers them."""

STRICT_EXIT_CODE = 99
"""What that script gets where the dump shall fail: none that Python ends with by itself."""

LOG_NAME = "irmapdb.log"
"""In the work dir; the one before is kept beside it, with `.old` added."""

_LOG_LIMIT_BYTES = 1 << 20
_ACTION = "pre-dump"
_MEMORY = "/run/irmapdb"
_MEMORY_S = 10.0  # CRIU's second call of one action follows the first within milliseconds
_UNTOLD_S = 10.0  # for the child to say what the configuration allows it
_GRACE_S = 5.0  # for the child to write what it has, before it is killed
_REAP_MS = 1000
_LINE_BYTES = 2000
_PID_DIGITS = 20


class _CallError(Exception):
    """What CRIU's environment lacks, in words."""


def main() -> int:
    """The console script: CRIU's environment in, the exit code out."""
    code = _main()
    # The installed script takes this one alone for an order to fail the dump.
    return STRICT_EXIT_CODE if code and SCRIPT_VARIABLE in os.environ else code


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
        return int(_is_strict())


def attend(pid: int, images: str) -> int:
    """Serve one dump of the tree of `pid`, in the cwd; the exit code for CRIU.

    `images` is CRIU's images dir, or "". Never waits for longer than the configured time and
    half of it, or 5 seconds more.
    """
    import signal

    started_s = time.monotonic()
    log_fd = _open_log()
    log_bytes = _size_of(log_fd)
    # Whoever ends us wants us to end, not the dump.
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
        ended = "was told to end"
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    if ended:
        os.kill(child, signal.SIGKILL)
    code = _reap(child)
    if scratch := told.get("scratch"):
        _remove(scratch)
    if ended or code not in {0, 1}:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        told["say"] = f"not done: the worker {ended or how}"
        _log(log_fd, told["say"])
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
        os.open(os.devnull, os.O_RDONLY)  # CRIU closes stdin: nothing of ours shall be number 0
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
        import signal

        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        _quiet(log_fd)
        code = _serve(pid, images, started_s, tell_fd, log_fd)
    except BaseException:  # noqa: BLE001 the parent only needs to know that it was not done
        import traceback

        _log(log_fd, traceback.format_exc()[-_LINE_BYTES:])
    finally:
        os._exit(code)


def _quiet(log_fd: int | None) -> None:
    # What Python has to say of its own end is for our log: CRIU's gets one line.
    target = os.open(os.devnull, os.O_WRONLY) if log_fd is None else log_fd
    for fd in (1, 2):
        os.dup2(target, fd)
    # Where memory is short, what CRIU dumps is worth more than this process.
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")
    except OSError:
        return


def _serve(pid: int, images: str, started_s: float, tell_fd: int, log_fd: int | None) -> int:
    def tell(word: str, text: str) -> None:
        line = f"{word} {text}".encode("utf-8", "backslashreplace")[:_LINE_BYTES]
        os.write(tell_fd, line + b"\n")

    # Before all that takes long, and may fail.
    from irmapdb import config as configuration
    from irmapdb.errors import ConfigError

    problems = []
    config, hook = configuration.Config(), configuration.HookConfig()
    try:
        config = configuration.load_config()
        hook = config.hook
        hook = configuration.with_environment(hook, os.environ)
    except ConfigError as error:
        problems.append(str(error))
    tell("budget", str(hook.timeout_s))
    tell("strict", str(int(hook.strict)))

    from irmapdb.hookjob import Job, serve

    job = Job(pid, images, config, hook, started_s, lambda: _is_deaf(tell_fd))
    done = serve(job, tell_scratch=lambda path: tell("scratch", path))
    problems += done.problems
    for line in (*problems, *done.notes, done.summary):
        _log(log_fd, line)
    tell("say", done.summary)
    return int(bool(problems) or not done.fresh)


def _is_deaf(tell_fd: int) -> bool:
    # Whether the parent is gone. Not by its pid: a search may ask from a child of its own.
    import select

    poll = select.poll()
    poll.register(tell_fd, 0)
    return bool(poll.poll(0))  # POLLERR: nobody has the other end open


# --- the parent -----------------------------------------------------------------------------------


def _listen(fd: int, started_s: float, told: dict[str, str]) -> str:
    # Takes in what the child tells. Why it has to be ended; "" if it ended itself.
    import select

    poll = select.poll()
    poll.register(fd, select.POLLIN)
    rest = b""
    while True:
        budget_s = float(told["budget"]) if "budget" in told else _UNTOLD_S
        end_s = started_s + budget_s + max(budget_s / 2, _GRACE_S)
        left_s = end_s - time.monotonic()
        if left_s <= 0:
            return f"did not end in {budget_s:g} s, nor in the grace after them"
        if not poll.poll(min(left_s, 60.0) * 1000):
            continue
        data = os.read(fd, 1 << 16)
        if not data:
            return ""
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            word, _, text = line.decode("utf-8", "backslashreplace").partition(" ")
            told[word] = text


def _reap(child: int) -> int:
    # The exit code, or the signal as a negative number. A child that hangs in the kernel is left
    # to it: it has been killed, and goes when the call returns.
    import select
    import signal

    pidfd = os.pidfd_open(child)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if not poll.poll(_REAP_MS):
        return -signal.SIGKILL
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _remove(scratch: str) -> None:
    # The temporary directory of a child that did not live to remove it.
    if os.path.isdir(scratch):
        import shutil

        shutil.rmtree(scratch, ignore_errors=True)


def _is_strict(told: dict[str, str] | None = None) -> bool:
    # As the child has read it; from the environment alone, where it did not come that far.
    if told and "strict" in told:
        return told["strict"] == "1"
    return os.environ.get("IRMAPDB_HOOK_STRICT", "").lower() in {"1", "true", "yes"}


# --- the second call ------------------------------------------------------------------------------


def _memory_of_call() -> str:
    # A file that stands for one dump of one CRIU process. A pid alone may come again.
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
    # And forgets the older ones.
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
        return  # then the second call does it all again


# --- what is said ---------------------------------------------------------------------------------


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
    # A second link may be a file of root's that somebody has linked here.
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        os.close(fd)
        _say(f"cannot write {LOG_NAME}: no regular file with one link")
        return None
    return fd


def _size_of(fd: int | None) -> int:
    return 0 if fd is None else os.fstat(fd).st_size


def _one_line(text: str) -> str:
    # Of the work dir's name, say. No import: this also tells of imports that fail.
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
