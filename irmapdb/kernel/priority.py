"""Sets the lowest priority for CPU, disk and memory, for work in the background.

sched(7): SCHED_IDLE; proc_pid_oom_score_adj(5); ioprio_set(2), which glibc has no wrapper for: its
number is that of arch/x86/entry/syscalls/syscall_64.tbl and of include/uapi/asm-generic/unistd.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

__all__ = ["be_idle", "be_killed_first"]

_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282}
_IOPRIO_WHO_PROCESS = 1
_IOPRIO_CLASS_IDLE = 3
_IOPRIO_CLASS_SHIFT = 13
_LOWEST_NICE = 19

_libc = ctypes.CDLL(None, use_errno=True)


def be_idle() -> None:
    """Let this process and its children run only if nothing else needs the machine.

    If the kernel or a seccomp filter refuses a call, nothing changes.
    """
    with contextlib.suppress(OSError):
        os.nice(_LOWEST_NICE)
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    number = _IOPRIO_SET.get(os.uname().machine)
    if number is not None:
        idle = _IOPRIO_CLASS_IDLE << _IOPRIO_CLASS_SHIFT
        _libc.syscall(number, _IOPRIO_WHO_PROCESS, 0, idle)


def be_killed_first() -> None:
    """Let the kernel kill this process before any other one if memory is short."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
