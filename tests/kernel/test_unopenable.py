"""The kernel opens handles of some filesystems, and of the others CRIU asks only irmap-cache."""

from __future__ import annotations

import errno
import os

import pytest

from irmapdb.checkpoint import criu_cache
from irmapdb.kernel import syscalls
from irmapdb.kernel.proof import identify
from irmapdb.kernel.root import open_root
from tests.support.features import require_filesystem

_NONE_OPENS = (
    *("binfmt_misc", "bpf", "debugfs", "devpts", "fusectl", "hugetlbfs", "mqueue", "proc"),
    *("pstore", "ramfs", "securityfs", "sysfs", "tracefs"),
)
_OPENS = ("cgroup2", "devtmpfs", "tmpfs")


@pytest.mark.parametrize("fstype", [*_NONE_OPENS, *_OPENS])
def test_what_the_kernel_opens(fstype, area):
    require_filesystem(fstype)
    top = area.mount(fstype, "top", fstype)
    with open_root(os.getpid()) as root:
        identity = identify(root, os.fsencode(top))
        assert identity.handle is not None
        with syscalls.Descriptor(os.open(top, os.O_RDONLY | os.O_DIRECTORY)) as mount_fd:
            code: int | None = 0
            try:
                os.close(syscalls.open_by_handle_at(mount_fd, identity.handle, os.O_PATH))
            except OSError as error:
                code = error.errno
        assert code == (0 if fstype in _OPENS else errno.ESTALE)
        assert criu_cache.is_unopenable(root, identity) is (code != 0)
