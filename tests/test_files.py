"""Files that are read and replaced whole, on real filesystems that are full, read-only or odd."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import random
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from irmapdb import files
from irmapdb.errors import FileError
from irmapdb.files import (
    check_replaceable,
    read_if_there,
    read_prefix,
    read_whole,
    replace_whole,
    replaced,
    sync,
)
from tests.support.features import require_program
from tests.support.filesystems import tmpfs

NOBODY = 65534


def enter(block):
    with block:
        raise AssertionError


def refused(call, *args, **kwargs):
    with pytest.raises(FileError) as caught:
        call(*args, **kwargs)
    assert caught.value.advice
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- reading ------------------------------------------------------------------------------------


def test_a_file_is_read_whole(tmp_path):
    path = tmp_path / "file"
    data = random.Random(1).randbytes(3 << 20)
    path.write_bytes(data)
    (tmp_path / "link").symlink_to("file")
    assert read_whole(path, limit_bytes=len(data)) == data
    assert read_whole(os.fsencode(tmp_path / "link"), limit_bytes=len(data)) == data
    assert read_prefix(path, size_bytes=9) == data[:9]
    assert read_prefix(path, size_bytes=len(data) + 1) == data
    message = refused(read_whole, path, limit_bytes=len(data) - 1)
    assert message.startswith(f"cannot read {path}: it has more than {len(data) - 1} bytes")


def test_a_file_of_unknown_size_is_limited_too():
    names = [Path("/sys/fs/cgroup/cgroup.procs"), *Path("/sys/fs/cgroup").glob("*/cgroup.procs")]
    name = next((one for one in names if one.exists() and one.read_bytes()), None)
    if name is None:
        pytest.skip("no cgroup is mounted")
    assert name.stat().st_size == 0
    assert read_whole(name, limit_bytes=1 << 20)
    assert "more than 1 bytes" in refused(read_whole, name, limit_bytes=1)


def test_a_stream_names_the_file_whose_read_fails():
    with open("/proc/self/mem", "rb") as memory:  # EIO at its beginning
        file = io.BufferedReader(files._Named(memory.fileno(), b"files.img"))
        with pytest.raises(FileError, match=r"files\.img.*rror"):
            file.read(512)


@pytest.mark.parametrize("name", ["/proc/self/status", "/proc/kmsg"])
def test_a_file_of_procfs_is_refused(name, tmp_path):
    (tmp_path / "link").symlink_to(name)
    for read in (read_whole, files.read_if_there):
        assert "the kernel makes its content" in refused(read, tmp_path / "link", limit_bytes=9)
    assert "the kernel makes its content" in refused(files.read_prefix, tmp_path / "link")
    # The link of a descriptor leads to the file itself.
    (tmp_path / "file").write_bytes(b"content")
    with (tmp_path / "file").open() as file:
        assert read_whole(f"/proc/self/fd/{file.fileno()}", limit_bytes=9) == b"content"


def test_a_stream_without_a_byte_yet_is_an_error():
    """As /proc/kmsg: opened so that no read waits, it gives None."""
    readable, writable = os.pipe2(os.O_NONBLOCK)
    try:
        with pytest.raises(FileError, match=r"/kmsg: Resource temporarily unavailable"):
            io.BufferedReader(files._Named(readable, b"/kmsg")).read(512)
    finally:
        os.close(readable)
        os.close(writable)


def test_a_missing_file(tmp_path):
    path = tmp_path / "missing"
    assert read_if_there(path, limit_bytes=1) is None
    message = refused(read_whole, path, limit_bytes=1)
    assert message.startswith(f"cannot read {path}: No such file or directory; ")
    (tmp_path / "file").touch()
    message = refused(read_if_there, tmp_path / "file" / "below", limit_bytes=1)
    assert "Not a directory" in message


def test_a_name_that_cannot_be_printed_is_escaped(tmp_path):
    path = os.fsencode(tmp_path) + b"/new\nline\xff"
    assert r"new\nline\xff: No such file" in refused(read_whole, path, limit_bytes=1)


@pytest.fixture
def odd_files(tmp_path):
    """Files that are not regular, by their type."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fsencode(tmp_path / "socket"))
    return {
        "a FIFO": tmp_path / "fifo",
        "a directory": tmp_path / "directory",
        "a socket": tmp_path / "socket",
        "a character device": Path("/dev/zero"),
    }


def test_a_special_file_is_not_read_and_does_not_block(odd_files):
    for what, path in odd_files.items():
        message = refused(read_whole, path, limit_bytes=1 << 20)
        assert message == refused(read_if_there, path, limit_bytes=1 << 20)
        assert message == refused(read_prefix, path)
        assert message.startswith(f"cannot read {path}: it is {what}, not a regular file")
        assert "remove" not in message
        assert "pipe it in where `-` is taken" in message


# --- writing ------------------------------------------------------------------------------------


def contents(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def test_a_new_file(tmp_path):
    path = tmp_path / "irmap-cache"
    stat = replace_whole(path, b"first")
    assert contents(tmp_path) == {"irmap-cache": b"first"}
    assert stat == path.stat()
    assert stat.st_mode == 0o100600


def test_an_old_file_is_replaced_and_not_written_into(tmp_path):
    path = tmp_path / "irmap-cache"
    path.write_bytes(b"old and longer than the new one")
    path.chmod(0o444)
    with path.open("rb") as reader:
        stat = replace_whole(os.fsencode(path), b"", mode=0o640)
        assert reader.read() == b"old and longer than the new one"
    assert contents(tmp_path) == {"irmap-cache": b""}
    assert stat == path.stat()
    assert stat.st_mode == 0o100640


def test_bytes_that_come_too_late_replace_nothing(tmp_path):
    target = tmp_path / "image"
    target.write_bytes(b"old")
    with pytest.raises(FileError, match="too late"):
        replace_whole(target, b"new", is_wanted=lambda: False)
    assert os.listdir(tmp_path) == ["image"]
    assert target.read_bytes() == b"old"


def test_a_waiting_reader_is_informed_before_fsync(tmp_path, monkeypatch):
    target = tmp_path / "image"
    target.write_bytes(b"old")
    events = []
    fsync = os.fsync

    def note(fd):
        events.append("synced")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", note)
    replace_whole(target, b"new", in_place=lambda: events.append(target.read_bytes()))
    assert events == [b"new", "synced", "synced"]  # the file, the directory
    events.clear()
    with pytest.raises(FileError, match="too late"):
        replace_whole(target, b"", is_wanted=lambda: False, in_place=lambda: events.append(b""))
    assert events == []
    replace_whole(target, b"newer", synced=False)
    assert events == []
    sync(target)
    assert events == ["synced", "synced"]
    assert contents(tmp_path) == {"image": b"newer"}


def test_a_name_without_a_directory_and_a_directory_behind_a_link(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    replace_whole(b"here", b"1")
    (tmp_path / "work").symlink_to(tmp_path)
    replace_whole(tmp_path / "work" / "there", b"2")
    assert contents(tmp_path) == {"here": b"1", "there": b"2"}


def test_the_longest_name_and_one_that_is_no_text(tmp_path):
    for name in (b"x" * 255, b"[a-z]*\xff\n"):
        path = os.fsencode(tmp_path) + b"/" + name
        replace_whole(path, b"1")
        replace_whole(path, name)
        assert read_whole(path, limit_bytes=255) == name
    assert len(list(tmp_path.iterdir())) == 2


def test_a_symbolic_link_is_not_written_through(tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    for name, target in (("link", "victim"), ("dangling", "nowhere")):
        (tmp_path / name).symlink_to(target)
        message = refused(replace_whole, tmp_path / name, b"new")
        assert message.startswith(f"cannot replace {tmp_path / name}: it is a symbolic link")
        assert (tmp_path / name).is_symlink()
    assert contents(tmp_path) == {"link": b"precious", "victim": b"precious"}


def test_a_special_file_is_not_replaced(odd_files, tmp_path):
    for what, path in odd_files.items():
        message = refused(replace_whole, path, b"new")
        assert f"it is {what}, not a" in message
        assert message == refused(check_replaceable, path)
    assert contents(tmp_path) == {}


def test_a_place_that_is_not_there(tmp_path):
    missing = tmp_path / "missing" / "irmap-cache"
    message = refused(replace_whole, missing, b"new")
    assert message.startswith(f"cannot write {missing}: No such file or directory; ")
    (tmp_path / "file").write_bytes(b"old")
    assert "Not a directory" in refused(replace_whole, tmp_path / "file" / "below", b"new")
    for path in (os.fsencode(tmp_path) + b"/", b"..", b""):
        assert "no file name" in refused(replace_whole, path, b"new")
        assert "no file name" in refused(check_replaceable, path)
    assert message == refused(check_replaceable, missing)
    check_replaceable(tmp_path / "file")
    check_replaceable(tmp_path / "new")
    assert contents(tmp_path) == {"file": b"old"}


def test_a_directory_that_may_not_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "irmap-cache").write_bytes(b"old")
    tmp_path.chmod(0o555)
    monkeypatch.chdir(tmp_path)  # the user nobody cannot come here through the parents
    root = os.geteuid() == 0
    if root:
        os.seteuid(NOBODY)
    try:
        message = refused(replace_whole, b"irmap-cache", b"new")
        assert message == refused(check_replaceable, b"irmap-cache")
    finally:
        if root:
            os.seteuid(0)
        tmp_path.chmod(0o755)
    assert message == "cannot write irmap-cache: Permission denied; try as root"
    assert contents(tmp_path) == {"irmap-cache": b"old"}


@pytest.mark.kernel
def test_a_read_only_mount(area):
    place = area.tmpfs()
    (place / "irmap-cache").write_bytes(b"old")
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    message = refused(replace_whole, place / "irmap-cache", b"new")
    assert "Read-only file system; choose a directory that can be written to" in message
    assert message == refused(check_replaceable, place / "irmap-cache")
    assert contents(place) == {"irmap-cache": b"old"}


def nameless_files_work(directory):
    try:
        os.close(os.open(directory, os.O_TMPFILE | os.O_RDWR))
    except OSError as error:
        return error.errno != errno.EOPNOTSUPP
    return True


@pytest.fixture(params=["tmpfs", "fuse"])
def small(request, area):
    """A filesystem of 1 MiB, with O_TMPFILE (tmpfs) and without (FUSE over it)."""
    with tmpfs(area.path / "small", size_mib=1) as mounted:
        place = area.fuse(mounted) if request.param == "fuse" else mounted
        assert nameless_files_work(place) == (request.param == "tmpfs")
        yield place


@pytest.mark.kernel
def test_a_full_filesystem(small):
    (small / "irmap-cache").write_bytes(b"old")
    free = os.statvfs(small).f_bavail
    message = refused(replace_whole, small / "irmap-cache", bytes(2 << 20))
    assert "No space left on device; free some space" in message
    assert contents(small) == {"irmap-cache": b"old"}
    assert os.statvfs(small).f_bavail == free

    replace_whole(small / "irmap-cache", b"new")
    assert contents(small) == {"irmap-cache": b"new"}


def test_several_files_are_replaced_together(tmp_path):
    (tmp_path / "other").mkdir()
    names = [tmp_path / name for name in ("one", "two", "other/three")]
    names[1].write_bytes(b"old")
    with replaced([(path, path.name.encode()) for path in names]) as stats:
        assert [(one.st_ino, one.st_size) for one in stats] == [
            (path.stat().st_ino, path.stat().st_size) for path in names
        ]
    assert contents(tmp_path) == {"one": b"one", "two": b"two"}
    assert contents(tmp_path / "other") == {"three": b"three"}


def replace_and_raise(names, error):
    with replaced([(path, b"new") for path in names]):
        assert [path.read_bytes() for path in names] == [b"new"] * len(names)
        raise error


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_several_files_are_put_back_where_the_block_raises(tmp_path, error):
    names = [tmp_path / name for name in ("one", "two", "three")]
    for path in names[:2]:
        path.write_bytes(b"old")
    before = [path.stat().st_ino for path in names[:2]]
    with pytest.raises(error):
        replace_and_raise(names, error)
    assert contents(tmp_path) == {"one": b"old", "two": b"old"}
    assert [path.stat().st_ino for path in names[:2]] == before


def test_an_old_file_that_may_come_back_is_no_leftover(tmp_path):
    path = tmp_path / "irmap-cache"
    path.write_bytes(b"old")

    def fail_while_another_does():
        with replaced([(path, b"new")]):
            with pytest.raises(ZeroDivisionError), replaced([(path, b"another")]):
                raise ZeroDivisionError
            raise KeyError

    with pytest.raises(KeyError):
        fail_while_another_does()
    assert contents(tmp_path) == {"irmap-cache": b"old"}


@pytest.mark.kernel
def test_where_one_of_several_cannot_be_renamed_over_all_old_ones_stay(small):
    names = [small / name for name in ("one", "two", "three")]
    for path in names[1:]:
        path.write_bytes(b"old")
    subprocess.run(["mount", "--bind", names[2], names[2]], check=True)
    try:
        message = refused(enter, replaced([(path, b"new") for path in names]))
        assert message.startswith(f"cannot write {names[2]}: Device or resource busy")
        assert contents(small) == {"two": b"old", "three": b"old"}
    finally:
        subprocess.run(["umount", names[2]], check=True)


@pytest.mark.kernel
def test_where_one_of_several_does_not_fit_all_old_ones_stay(small):
    names = [small / name for name in ("one", "two", "three")]
    for path in names[:2]:
        path.write_bytes(b"old")
    new = zip(names, (b"new", b"new", bytes(2 << 20)), strict=True)
    message = refused(enter, replaced(new))
    assert message.startswith(f"cannot write {names[2]}: No space left on device")
    assert contents(small) == {"one": b"old", "two": b"old"}


@pytest.mark.kernel
def test_a_target_that_cannot_be_renamed_over_leaves_nothing(small):
    target = small / "irmap-cache"
    target.write_bytes(b"old")
    subprocess.run(["mount", "--bind", target, target], check=True)
    try:
        assert "resource busy; unmount what is mounted on it" in refused(
            replace_whole, target, b"new"
        )
        assert contents(small) == {"irmap-cache": b"old"}
    finally:
        subprocess.run(["umount", target], check=True)


@pytest.mark.kernel
def test_writers_at_the_same_time(small):
    target = small / "irmap-cache"

    def write(who):
        for n in range(50):
            replace_whole(target, b"%d %d\n" % (who, n) * 100)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(write, range(3)))
    [(name, data)] = contents(small).items()
    assert name == "irmap-cache"
    assert data == data[: len(data) // 100] * 100
    assert data.splitlines()[0].endswith(b" 49")


def test_leftovers_are_removed_if_no_process_holds_them(tmp_path):
    def leftover(target, digit):
        path = tmp_path / f".{target}.{digit * 16}.irmapdb-new"
        path.write_bytes(b"half")
        return path

    dead, alive = leftover("irmap-cache", "0"), leftover("irmap-cache", "a")
    of_another_target = leftover("inotify-files.img", "0")
    others = [tmp_path / ".irmap-cache.0000000000000000.new", tmp_path / ".irmap-cache.irmapdb-new"]
    for path in others:
        path.write_bytes(b"of another program")
    with alive.open("rb") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        replace_whole(tmp_path / "irmap-cache", b"new")
        assert not dead.exists()
        assert not of_another_target.exists()
        assert alive.exists()
    replace_whole(tmp_path / "irmap-cache", b"new")
    assert not alive.exists()
    assert all(path.exists() for path in others)


CHECKOUT = Path(__file__).parents[1]

REPLACE = """
import sys
from irmapdb.errors import FileError
from irmapdb.files import replace_whole
try:
    replace_whole(sys.argv[1].encode(), b"new")
except FileError as error:
    sys.exit(str(error))
"""


def replace_while(target, injected):
    """Replace the file in a process to which strace does the `injected` faults."""
    require_program("strace")
    return subprocess.run(
        [
            *("strace", "-o", os.devnull, "-e", f"inject={injected}"),
            *(sys.executable, "-c", REPLACE, target),
        ],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("entering", "found", "leftovers"),
    [
        ("fchmod", b"old", 0),
        ("fsync:when=1", b"old", 0),
        ("flock", b"old", 0),
        ("linkat", b"old", 0),
        ("renameat", b"old", 1),
        ("fsync:when=2", b"new", 0),
    ],
)
def test_a_writer_killed_on_entering_a_system_call(area, entering, found, leftovers):
    place = area.tmpfs()
    target = place / "irmap-cache"
    target.write_bytes(b"old")
    syscall, _, when = entering.partition(":")
    done = replace_while(target, f"{syscall}:signal=KILL{':' if when else ''}{when}")
    assert done.returncode == -signal.SIGKILL
    left = contents(place)
    assert left.pop("irmap-cache") == found
    assert list(left.values()) == [b"new"] * leftovers
    replace_whole(target, b"next")
    assert contents(place) == {"irmap-cache": b"next"}


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("failing", "found", "message"),
    [
        ("linkat:error=EPERM", b"new", ""),
        ("flock:error=ENOLCK", b"new", ""),
        ("fsync:error=EIO", b"old", "Input/output error; look into the kernel's log"),
        ("renameat:error=EDQUOT", b"old", "Disk quota exceeded; free some space there"),
        ("fsync:error=EIO:when=2", b"new", "Input/output error; look into the kernel's log"),
        ("fsync:error=EINVAL:when=2", b"new", ""),
    ],
)
def test_a_system_call_that_fails(area, failing, found, message):
    place = area.tmpfs()
    target = place / "irmap-cache"
    target.write_bytes(b"old")
    done = replace_while(target, failing)
    assert done.returncode == (1 if message else 0)
    assert message in done.stderr
    assert contents(place) == {"irmap-cache": found}


REPLACE_SEVERAL = """
import sys
from irmapdb.files import replaced
with replaced([(path.encode(), b"new") for path in sys.argv[1:]]):
    pass
"""


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("entering", "new"), [("fsync:3", 0), ("renameat:1", 0), ("renameat:2", 1), ("renameat:3", 2)]
)
def test_a_writer_of_several_killed_on_entering_a_system_call(area, entering, new):
    require_program("strace")
    place = area.tmpfs()
    names = [place / name for name in ("one", "three", "two")]
    for path in names:
        path.write_bytes(b"old")
    syscall, when = entering.split(":")
    done = subprocess.run(
        [
            *("strace", "-o", os.devnull, "-e", f"inject={syscall}:signal=KILL:when={when}"),
            *(sys.executable, "-c", REPLACE_SEVERAL, *names),
        ],
        cwd=CHECKOUT,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    assert [path.read_bytes() for path in names] == [b"new"] * new + [b"old"] * (3 - new)
    with replaced([(path, b"next") for path in names]):
        pass
    assert contents(place) == {"one": b"next", "two": b"next", "three": b"next"}


WRITER = """
import sys
from irmapdb.files import replace_whole
target = sys.argv[1]
for n in range(1_000_000):
    replace_whole(target.encode(), b"%d\\n" % n * (n % 7 * 1000 + 1))
    if n == 0:
        print(flush=True)
"""


@pytest.mark.kernel
@pytest.mark.slow
def test_a_writer_killed_at_any_moment(small):
    target = small / "irmap-cache"
    rng = random.Random(2)
    for _ in range(60):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, target], stdout=subprocess.PIPE, cwd=CHECKOUT
        )
        try:
            assert writer.stdout.readline() == b"\n"
            time.sleep(rng.random() / 50)  # the moment, not readiness
        finally:
            writer.kill()
            writer.communicate()
        found = contents(small)
        data = found.pop("irmap-cache")
        number = int(data.split(b"\n", 1)[0])
        assert data == b"%d\n" % number * (number % 7 * 1000 + 1)
        assert len(found) <= 1  # the one that this writer was at; earlier ones are gone
    replace_whole(target, b"last")
    assert contents(small) == {"irmap-cache": b"last"}
