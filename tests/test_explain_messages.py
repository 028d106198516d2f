"""Every message of CRIU about watches has an explanation, which is the right one."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from irmapdb.criu.explain.engines import Engine, help_for, option_help
from irmapdb.criu.explain.message_kinds import Remedy, Role
from irmapdb.criu.explain.messages import MESSAGES, find_message
from irmapdb.criu.explain.other_causes import OTHER_CAUSES, find_consequence, find_other
from tests.support.cli import irmapdb
from tests.support.explain_lines import BUILT, LINES

_BY_NAME = {message.name: message for message in MESSAGES}
_ALL = [(name, line) for name, lines in LINES.items() for line in lines]
_PAGE = Path(__file__).parent.parent / "docs" / "explain.md"


def test_each_message_has_a_line() -> None:
    assert len(_BY_NAME) == len(MESSAGES)
    assert LINES.keys() == _BY_NAME.keys()
    assert LINES.keys() > BUILT


@pytest.mark.parametrize(("name", "line"), _ALL)
def test_a_message_is_known_and_its_parts_are_read(name: str, line: str) -> None:
    found = find_message(line.encode(), in_cache=True)
    assert found is not None
    message, match = found
    assert message.name == name
    parts = {key: value for key, value in match.groupdict().items() if value is not None}
    wanted = {
        "dev": b"2c" if re.search(r"\b(0x0*|s_dev |fhandle |sdev:)?2c\b", line) else None,
        "ino": b"e" if re.search(r"(0x0*|:| ino )e\b", line) else None,
        "wd": b"3" if re.search(r"wd[ :](to )?(0x0*)?3\b", line) else None,
    }
    for key, value in wanted.items():
        if key in parts:
            assert parts[key].lstrip(b"0") == _VALUES[key], (key, line)
        elif value and message.role in {Role.CAUSE, Role.NAMES}:
            assert name in _UNREAD, (key, line)
    for path in re.findall(r"\bsrv/a(?: \(b\))?", line):
        if "path" in parts:
            assert parts["path"].endswith(path.encode()) or name in _LONGER, (parts, line)


_VALUES = {"dev": b"2c", "ino": b"e", "wd": b"3"}
"""In each line."""
_UNREAD = {
    "instance-missing",
    "wd-unsorted",
    "mark-allocation",
    "mark-refused",
    "add-watch-refused",
}
"""Messages that name more than is read of them."""
_LONGER = {"restore-remap", "tried-mount", "walk-entry"}


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.name)
def test_a_message_has_words_for_people(message) -> None:
    assert message.meaning
    assert message.meaning[0] == message.meaning[0].lower() or message.meaning[:4] == "CRIU"
    assert not message.meaning.endswith(".")
    assert message.versions in {"4.1 to 4.3", "4.3"}
    if message.role is Role.CAUSE:
        assert message.remedy is not Remedy.NONE


@pytest.mark.parametrize(
    ("name", "line"),
    [one for one in _ALL if _BY_NAME[one[0]].role in {Role.CAUSE, Role.NAMES}],
)
def test_a_line_alone_is_explained(name: str, line: str) -> None:
    # A log with only this line: -v1, without times.
    before = "irmap: Loading irmap cache\n" if name == "cache-empty" else ""
    log = f"{before}Error (criu/file.c:12): {line}\nError (criu/x.c:1): Dumping FAILED.\n"
    done = irmapdb("explain", "-", "--json", "--offline", stdin=log.encode())
    assert done.code == 3
    document = json.loads(done.out)
    (finding,) = document["findings"]
    assert (finding["name"], finding["ours"], finding["stops"]) == (name, True, True)
    assert finding["text"] == line
    assert finding["why"]
    assert finding["help"]


def test_each_engine_has_its_command() -> None:
    commands = {str(one): help_for(Remedy.HOOK, one).command for one in Engine}
    assert commands == {
        "criu": "irmapdb hook --install criu",
        "runc": "irmapdb hook --install runc",
        "crun": "irmapdb hook --install crun",
        "podman": "irmapdb hook --install podman",
        "cri-o": "irmapdb hook --install runc",
        "containerd": "irmapdb hook --install runc",
        "docker": "irmapdb hook --install runc",
        "lxc": "irmapdb hook --install criu",
    }
    for remedy in Remedy:
        assert help_for(remedy, None).text
    options = {str(one): option_help("x", "tcp-established", one).command for one in Engine}
    assert options["podman"] == "podman container checkpoint --tcp-established …"
    assert options["docker"] == "echo tcp-established >> /etc/criu/runc.conf"
    assert option_help("x", "link-remap", Engine.CRUN).command == (
        "echo link-remap >> /etc/criu/crun.conf"
    )


_OTHERS = {
    "tcp-established": "inet: Connected TCP socket, consider using --tcp-established option.",
    "tcp-in-flight": "inet: In-flight connection (l) for 1a2b",
    "tcp-close": "Need to set the --tcp-close options.",
    "unix-external": "unix: External socket is used. Consider using --ext-unix-sk option.",
    "unix-socket": "unix: Can't bind id 0x1 ino 2 addr a: Address already in use",
    "socket-type": "inet: Unsupported proto 262 for socket 1a",
    "inet-socket": "inet: Can't bind inet socket (id 3): Cannot assign requested address",
    "socket-option": "sockets: Can't get 1:16 opt: Operation not supported",
    "shell-job": "tty: Found dangling tty with sid 1 pgid 1 (pts) on peer fd 0.",
    "terminal": "tty: Can't open slave tty /dev/pts/1",
    "session-outside": "A session leader of 12(3) is outside of its pid namespace",
    "nested-namespace": "Can't dump nested pid namespace for 123",
    "pid-namespace": "Can't dump a pid namespace without the process init",
    "pid-in-use": "Pid 12 do not match expected 11",
    "time-namespace": "Time namespaces are not supported",
    "io-uring": "send_fds failed (-22)",
    "external-device": "Can't dump file 5 of that type [20666] (chr 10:229)",
    "file-type": "Can't dump file 5 of that type [600] (anon anon_inode:[perf_event])",
    "pidfd": "pidfd: pidfd pid 1 is not a part of process tree..",
    "file-locks": "Some file locks are hold by dumping tasks! You can try --file-locks.",
    "ghost-limit": "Can't dump ghost file /srv/a of 3145728 size, increase limit",
    "link-remap": "Can't create link remap for /srv/a. Use link-remap option.",
    "ghost": "Corrupted ghost image -> no size",
    "file-changed": "File srv/a has bad size 1 (expect 2)",
    "file-missing": "Can't open file srv/a on restore: No such file or directory",
    "file-mount": "Can't lookup mount=21 for fd=3 path=/queue",
    "overmounted": "Open files on overmounted mounts are not supported yet; mount=1 fd=2 path=a",
    "mount-source-replaced": "mnt: Can't re-create deleted file /srv/a: File exists",
    "mount-external": "mnt: Mount 12:./x is autodetected external mount. Try …",
    "chroot": "mnt: The root task has another root than mntns: /srv",
    "mount": "mnt-v2: Unable to mount overlay ./x (id=3): No such file or directory",
    "freeze": "Unable to freeze cgroup /a (100 x 100ms attempts, timeout: 10s)",
    "cgroup": "cg: Can't make cgroup dir a: Permission denied",
    "rlimit-of-criu": "rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted",
    "rlimit": "Can't open 12/fd on procfs: Too many open files",
    "network-lock": "net: Locking network failed using nftables",
    "network": "net: Can't restore link: -17",
    "traced": "Unseizable non-zombie 12 found, state t, err 1/1",
    "seccomp": "Dumping seccomp filters not supported: Operation not permitted",
    "lsm": "apparmor LSM specified but apparmor not supported by kernel",
    "sysv-ipc": "Task 12 with SysVIPC shmem map @7f00 doesn't live in IPC ns",
    "cpu": "cpu: CPU capabilities do not match run time",
    "soft-dirty": "BUG at criu/mem.c:123",
    "32-bit": "Can't dump task 12 running in 32-bit mode",
    "task-state": "Zombies with threads are not supported",
    "no-space": "Can't write pages-1.img: No space left on device",
    "image-version": "Not supported images version 9",
    "image-damaged": "Magic doesn't match for core-1.img",
    "descriptor": "Unable to open fd=5 id=0x16",
    "permission": "Can't open 12/mem on procfs: Operation not permitted",
    "no-such-task": "Can't open 12/stat on procfs: No such file or directory",
}


def test_each_other_cause_has_a_line() -> None:
    assert [one.name for one in OTHER_CAUSES if one.name not in _OTHERS] == []
    assert len({one.name for one in OTHER_CAUSES}) == len(OTHER_CAUSES)


@pytest.mark.parametrize(("name", "line"), _OTHERS.items())
def test_a_cause_that_is_not_a_watch_is_named(name: str, line: str) -> None:
    found = find_other(line.encode())
    assert found is not None
    assert found.name == name
    log = (
        f"(00.012345) Error (criu/file.c:12): {line}\n(00.02) Error (criu/x.c:1): Dumping FAILED.\n"
    )
    done = irmapdb("explain", "--offline", stdin=log.encode())
    assert done.code == 3
    assert f"cause:  {found.topic}; no watch and no mark" in done.out
    assert find_message(line.encode(), in_cache=False) is None


@pytest.mark.parametrize(
    "line",
    [
        "Dumping FAILED.",
        "Restoring FAILED.",
        "Pre-dumping FAILED.",
        "Dump files (pid: 12) failed with -1",
        "Unable to detach from 12: No such process",
    ],
)
def test_a_consequence_is_no_cause(line: str) -> None:
    assert find_consequence(line.encode())
    assert find_other(line.encode()) is None or "procfs" in line


def test_an_unknown_error_is_quoted_and_said_to_be_unknown() -> None:
    log = b"(00.1) Error (criu/new.c:1): A new thing broke: \x1b[2J\n"
    done = irmapdb("explain", "--offline", "--json", stdin=log)
    (finding,) = json.loads(done.out)["findings"]
    assert (finding["name"], finding["ours"]) == ("unknown", False)
    shown = irmapdb("explain", "--offline", stdin=log).out
    assert "A new thing broke: \\x1b[2J" in shown


_HARMLESS = "rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted"
_NEW = "new: A new thing broke"


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        ([_HARMLESS, _NEW], ["unknown"]),
        ([_HARMLESS, _OTHERS["pidfd"]], ["pidfd"]),
        ([_HARMLESS, _NEW, _OTHERS["descriptor"]], ["unknown"]),
        ([_HARMLESS, _OTHERS["descriptor"], _NEW], ["descriptor"]),
        ([_HARMLESS], ["rlimit-of-criu"]),
    ],
)
def test_an_error_after_which_criu_continues_counts_after_every_other(
    lines: list[str], names: list[str]
) -> None:
    log = "".join(f"(00.1) Error (criu/a.c:1): {line}\n" for line in [*lines, "Dumping FAILED."])
    done = irmapdb("explain", "--offline", "--json", stdin=log.encode())
    assert [one["name"] for one in json.loads(done.out)["findings"]] == names


def test_the_page_has_every_message() -> None:
    page = _PAGE.read_text("utf-8")
    missing = [name for name in (*_BY_NAME, *_OTHERS) if f"`{name}`" not in page]
    shown = [name for name in missing if _BY_NAME.get(name) is None or _is_explained(name)]
    assert shown == []


def _is_explained(name: str) -> bool:
    return _BY_NAME[name].role in {Role.CAUSE, Role.NAMES, Role.LOSS}
