"""The open and mapped files of real processes, by the bytes of their names."""

import os

from irmapdb.kernel.proc import open_files
from tests.support.names import ODD_NAMES


def test_open_files_have_the_bytes_of_their_names(watcher, tmp_path):
    directory = os.fsencode(tmp_path)
    for name in ODD_NAMES:
        watcher.write(directory + b"/" + name)
    links = {watcher.open(directory + b"/" + name): name for name in ODD_NAMES}
    watcher.chdir(tmp_path)
    watcher.unlink(directory + b"/" + ODD_NAMES[0])
    found = {file.link: file.path for file in open_files.open_files(watcher.pid)}
    base = f"/proc/{watcher.pid}"
    for fd, name in links.items():
        deleted = b" (deleted)" if name == ODD_NAMES[0] else b""
        assert found[f"{base}/fd/{fd}"] == directory + b"/" + name + deleted
    assert found[f"{base}/cwd"] == directory
    assert found[f"{base}/exe"] == os.fsencode(os.readlink(f"{base}/exe"))
    # Its socket to us, and an inotify instance, have no path.
    watcher.add_inotify(tmp_path)
    assert all(file.path.startswith(b"/") for file in open_files.open_files(watcher.pid))


def test_mapped_files_are_listed_once_each_and_are_bounded(watcher, monkeypatch):
    files = list(open_files.mapped_files(watcher.pid))
    paths = [file.path for file in files]
    assert os.fsencode(os.readlink(f"/proc/{watcher.pid}/exe")) in paths
    assert len(set(paths)) == len(paths) < len(os.listdir(f"/proc/{watcher.pid}/map_files"))
    assert all(file.link.startswith(f"/proc/{watcher.pid}/map_files/") for file in files)
    monkeypatch.setattr(open_files, "_MOST_MAPS", 1)
    assert len(list(open_files.mapped_files(watcher.pid))) == 1
    watcher.kill()
    assert list(open_files.mapped_files(watcher.pid)) == []
