"""The files of /proc, and the numbers of this process in them."""

import os
import re
from pathlib import Path

from irmapdb.kernel.proc import mountinfo, procfs, tasks


def test_a_file_of_proc_is_read_whole(tmp_path):
    large = tmp_path / "large"
    large.write_bytes(os.urandom((1 << 20) + 17))
    assert procfs.read_file(os.fspath(large)) == large.read_bytes()
    (tmp_path / "empty").touch()
    assert procfs.read_file(os.fspath(tmp_path / "empty")) == b""
    status = procfs.read_file("/proc/self/status")
    nspid = re.search(rb"NSpid:\s*([\d\s]+?)\n", status)[1]
    assert tasks.namespace_pids(os.getpid()) == tuple(map(int, nspid.split()))
    assert mountinfo.mount_namespace("self") == Path("/proc/self/ns/mnt").stat().st_ino
