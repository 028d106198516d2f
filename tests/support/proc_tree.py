"""Tasks as /proc shows them, in files below a directory that stands for /proc."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["HOST_MOUNTS", "OWN_MOUNTS", "make_host", "task"]

HOST_MOUNTS = "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
OWN_MOUNTS = "90 80 0:50 / / rw - overlay overlay rw\n91 90 0:51 / /proc rw - proc proc rw\n"


def task(
    proc: Path, pid: int, ppid: int, mntns: int, mounts: str, cgroup: str, inner: int = 0
) -> None:
    """One task as /proc shows it, started in the order of the pids."""
    directory = proc / str(pid)
    (directory / "ns").mkdir(parents=True)
    (directory / "fd").mkdir()
    (directory / "ns" / "mnt").symlink_to(f"mnt:[{mntns}]")
    (directory / "mountinfo").write_text(mounts)
    (directory / "cgroup").write_text(cgroup)
    zeros = " ".join(["0"] * 15)
    (directory / "stat").write_text(f"{pid} (x) S {ppid} {zeros} 1 0 {pid} 0 0\n")
    nspid = f"{pid}\t{inner}" if inner else f"{pid}"
    (directory / "status").write_text(f"Name:\tx\nNSpid:\t{nspid}\n")


def make_host(proc: Path) -> None:
    """The init of the machine, and a task that stands for us."""
    task(proc, 1, 0, 1000, HOST_MOUNTS, "0::/init.scope\n")
    task(proc, 50, 1, 1000, HOST_MOUNTS, "0::/system.slice/irmapdb-warm.service\n")
    (proc / "self").symlink_to("50")
