"""Errors of CRIU that have nothing to do with watches: sockets, terminals, mounts, and others.

Each has the beginning of one or several messages of CRIU 4.1 to 4.3, a topic, a meaning and a
remedy. `option` is the option of CRIU that helps, as it stands in a configuration file. This table
is not complete: `explain` calls any other message `unknown`.

Sources: the texts in the programs of CRIU 4.1.1, 4.2.1 and 4.3; criu(8).
"""

from __future__ import annotations

import re
from functools import cache

from irmapdb.record import Record

__all__ = ["OTHER_CAUSES", "OtherCause", "find_consequence", "find_other"]


class OtherCause(Record):
    """One kind of error that irmapdb cannot help with."""

    name: str
    topic: str
    """The subject, in a word or two: `TCP connection`."""
    pattern: bytes
    meaning: str
    remedy: str
    option: str = ""
    """The option of CRIU that helps; empty if none does."""
    is_weak: bool = False
    """Whether another error counts before it, because it has no reason."""
    is_harmless: bool = False
    """Whether CRIU goes on after it. Every other error counts before it, an unknown one too."""


OTHER_CAUSES = (
    # Sockets
    OtherCause(
        "tcp-established",
        "TCP connection",
        rb"inet: (?:Connected TCP socket|Socket state \d)|.{0,40}TCP repair mode",
        "a task has an open TCP connection",
        "let CRIU dump open TCP connections, or close it before the dump",
        "tcp-established",
    ),
    OtherCause(
        "tcp-in-flight",
        "TCP connection",
        rb"inet: In-flight connection",
        "a listening socket has a connection that the task has not accepted yet",
        "dump again, or let CRIU leave out such connections",
        "skip-in-flight",
    ),
    OtherCause(
        "tcp-close",
        "TCP connection",
        rb"Need to set the --tcp-close options",
        "the dump was made with --tcp-close",
        "restore with the same option",
        "tcp-close",
    ),
    OtherCause(
        "unix-external",
        "Unix socket",
        rb"unix: (?:External socket (?:is used|found)|Can't dump (?:half of stream|name-less)"
        rb"|Unix socket \d|Dangling connection|Only dgram)",
        "a task has a Unix socket whose other end is outside of the tree",
        "dump both ends, close the socket, or let CRIU leave the other end alone",
        "ext-unix-sk",
    ),
    OtherCause(
        "unix-socket",
        "Unix socket",
        rb"(?:sk-)?unix: ",
        "CRIU cannot handle a Unix socket of a task",
        "see the message; close the socket before the dump",
    ),
    OtherCause(
        "socket-type",
        "socket",
        rb"inet: (?:Unsupported|For Go programs|Unknown inet|Can't dump)|Unknown socket family"
        rb"|sockets: BUG! Unknown socket|Can't dump \d{1,10} (?:inet|socket)|netlink: |packet: ",
        "a task has a socket of a kind or state that CRIU cannot dump (MPTCP, netlink with data, "
        "vsock and others)",
        "close it before the dump; for MPTCP of Go programs set GODEBUG=multipathtcp=0",
    ),
    OtherCause(
        "inet-socket",
        "socket",
        rb"inet: |tcp: ",
        "CRIU cannot handle a socket of a task",
        "see the message; at a restore, the address must be free and exist on this machine",
    ),
    OtherCause(
        "socket-option",
        "socket",
        rb"sockets: Can't get \d{1,5}:\d{1,5} opt.{0,80}not supported",
        "the kernel refuses a socket option that this CRIU asks for (Linux 6.16 and CRIU before "
        "4.2: SO_PASSCRED of a TCP or UDP socket)",
        "use CRIU 4.2 or newer",
    ),
    # Terminals and sessions
    OtherCause(
        "shell-job",
        "terminal",
        rb"tty: Found dangling tty|Task attached to shell terminal|The root process \d{1,10} is not"
        rb" a session leader",
        "the root task belongs to the session or the terminal of a shell that is not dumped",
        "give CRIU the option for shell jobs, or start the task with setsid and its stdio in files",
        "shell-job",
    ),
    OtherCause(
        "terminal",
        "terminal",
        rb"tty: ",
        "CRIU cannot handle a terminal of a task",
        "start the task without a terminal (a container without -t), or give CRIU the terminal "
        "with --external 'tty[rdev:dev]'",
    ),
    OtherCause(
        "session-outside",
        "session",
        rb"A session leader of |Can't find a session leader|Can't figure out which sid"
        rb"|Requested sid",
        "the session leader of a task is not in the dumped tree",
        "dump the tree from the session leader, or start the task with setsid",
    ),
    # Namespaces
    OtherCause(
        "nested-namespace",
        "nested namespace",
        rb"Can't dump nested |Nested .{0,40}namespace|mnt: Nested ",
        "a task of the tree is in a PID, user or other namespace of its own below that of the root "
        "task (a container in a container)",
        "stop the inner container before the dump, or run it outside of this one",
    ),
    OtherCause(
        "pid-namespace",
        "PID namespace",
        rb"Can't (?:dump|restore) a pid namespace without|This process tree can only be restored"
        rb"|failed to restore pid namespace|Unable to restore into an empty PID",
        "the tree does not begin with the first process of its PID namespace",
        "dump the first process of the namespace, and restore into a new one",
    ),
    OtherCause(
        "pid-in-use",
        "PID",
        rb"Pid \d{1,10} do not match expected|Can't fork for \d{1,10}: File exists",
        "a task must get its old PID, and another process has it",
        "end that process, or restore in a new PID namespace",
    ),
    OtherCause(
        "time-namespace",
        "time namespace",
        rb"Time namespaces are not supported|Unable to create a new time namespace",
        "the kernel has no time namespaces",
        "use a newer kernel",
    ),
    # Files
    OtherCause(
        "io-uring",
        "io_uring",
        rb"(?:parasite: |pie: )?.{0,20}send_fds failed \(-22\)|Can't dump file \d{1,10} of that"
        rb" type .{0,40}io_uring",
        "a task uses io_uring. The kernel gives such a descriptor to no other process, so CRIU "
        "cannot dump it",
        "make the program work without io_uring (Node: UV_USE_IO_URING=0), or refuse the system "
        "call by seccomp, so that it falls back",
    ),
    OtherCause(
        "external-device",
        "device",
        rb"Can't dump file \d{1,10} of that type \[\d{1,10}\] \((?:chr|blk) |Device hook failed"
        rb"|handle_device_vma plugin failed|Can't handle non-regular mapping",
        "a task has a device open or mapped (a GPU, /dev/fuse, /dev/kvm, …)",
        "close it before the dump, use the plugin of CRIU for that device, or give it with "
        "--external 'dev[MAJOR/MINOR]:NAME'",
    ),
    OtherCause(
        "file-type",
        "file type",
        rb"Can't dump file \d{1,10} of that type|Unknown shit |Unknown file type",
        "a task has a descriptor of a kind that CRIU cannot dump",
        "close it before the dump",
    ),
    OtherCause(
        "pidfd",
        "pidfd",
        rb"pidfd: ",
        "CRIU cannot handle a pidfd of a task, for example of a process outside of the tree",
        "close it before the dump",
    ),
    OtherCause(
        "file-locks",
        "file locks",
        rb"Some file locks are hold|(?:Unresolved lock|Unknown file lock|Dump file lock|Can not set"
        rb" (?:flock|posix|ofd))",
        "a task holds file locks",
        "let CRIU dump file locks",
        "file-locks",
    ),
    OtherCause(
        "ghost-limit",
        "deleted file",
        rb"Can't dump ghost file .{0,4096} of \d{1,20} size",
        "a task has a deleted file open that is larger than the limit (1 MiB)",
        "raise the limit with --ghost-limit SIZE, or close the file",
    ),
    OtherCause(
        "link-remap",
        "deleted file",
        rb"Can't create link remap for|Can't (?:note )?link remap|Can't create even fake link",
        "a task has a file open under a name that was deleted, and the file has another name",
        "let CRIU make a temporary link",
        "link-remap",
    ),
    OtherCause(
        "ghost",
        "deleted file",
        rb"(?:Corrupted g|Can't (?:open|send) g|G)host |Can't transfer data to ghost|The \d{1,10}"
        rb" mount is not found for ghost|No rdev for ghost",
        "CRIU cannot save or make again a deleted file that a task has open",
        "close the file before the dump; at a restore, look for free space",
    ),
    OtherCause(
        "file-changed",
        "changed file",
        rb"File .{0,4096} has bad (?:size|mode|build-ID)",
        "a file is not the same as at the dump",
        "restore with the same files (the same image)",
    ),
    OtherCause(
        "file-missing",
        "missing file",
        rb"Can't open file .{0,4096} on restore|files: Can't|Can't open mapped|Can't open cwd"
        rb"|Can't find regfile",
        "a file that a task had open does not exist, or cannot be opened",
        "provide the file (a volume, the same image) before the restore",
    ),
    OtherCause(
        "file-mount",
        "mount",
        rb"Can't lookup mount=-?\d{1,10} for fd=",
        "a task has a file open or mapped that is on no mount of its mount namespace (a POSIX "
        "message queue, secret memory, a file that came from another mount namespace)",
        "close it before the dump",
    ),
    OtherCause(
        "overmounted",
        "mount",
        rb"Open files on overmounted mounts|mnt: The mount \d{1,10} is overmounted",
        "a task has a file open below a mount that another one covers",
        "close the file, or unmount the upper mount",
    ),
    # Mounts
    OtherCause(
        "mount-source-replaced",
        "mount",
        rb"mnt(?:-v2)?: Can't re-create deleted",
        "the source of a mount of the container was replaced on the host while the container ran "
        "(/etc/hosts, a subPath file of Kubernetes)",
        "restart the container before the dump",
    ),
    OtherCause(
        "mount-external",
        "mount",
        rb"mnt: (?:Mount \d{1,10}:.{0,4096} is autodetected external|No mapping for)"
        rb"|.{0,200} is a fuse mount but not external|mnt: FS mnt |mnt(?:-v2)?: .{0,300}"
        rb"unreachable sharing|mnt: Unable to (?:dump a file system|find suitable mount)",
        "the tree has a mount that CRIU cannot dump or make again by itself",
        "give it to CRIU with --external 'mnt[MOUNTPOINT]:NAME', or unmount it before the dump",
    ),
    OtherCause(
        "chroot",
        "chroot",
        rb"mnt: The root task has another root than mntns",
        "the root task is in a chroot of its mount namespace, and CRIU refuses such a tree",
        "choose a root task that is in no chroot",
    ),
    OtherCause(
        "mount",
        "mount",
        rb"mnt(?:-v2)?: |Open mount|Failed to (?:parse|read) mountinfo|autofs",
        "CRIU cannot dump or restore a mount",
        "see the message; at a restore, the source of each mount must exist",
    ),
    # Control groups, network, limits
    OtherCause(
        "freeze",
        "freezer",
        rb"Unable to freeze cgroup|Unknown freezer state|Neither a cgroupv1|Unable to .{0,20}"
        rb"(?:freeze|thaw) tasks|Timeout reached|cgroup.{0,40}frozen",
        "the tasks did not stop in time. One of them waits for a disk or a server, or new tasks "
        "are being started",
        "dump again, or give CRIU more time with --timeout SECONDS",
    ),
    OtherCause(
        "cgroup",
        "cgroup",
        rb"cg(?:-prop)?: |Failed parsing cgroup|couldn't parse internal cgroup|Dump cgroup of",
        "CRIU cannot dump or restore a cgroup",
        "see the message; --manage-cgroups=ignore leaves cgroups to the engine",
    ),
    OtherCause(
        "rlimit-of-criu",
        "resource limit",
        rb"rlimit: Can't setup RLIMIT_NOFILE for self",
        "CRIU could not raise its own limit of open files",
        "run it with CAP_SYS_RESOURCE",
        is_harmless=True,
    ),
    OtherCause(
        "rlimit",
        "resource limit",
        rb"rlimit: |Can't get rlimit|sfd: Can't get rlimit|Can't restore cur > max|.{0,300}: Too"
        rb" many open files$",
        "a resource limit (RLIMIT_NOFILE and others) is too low, or may not be set",
        "raise the limit of CRIU (`ulimit -n`), and run it with CAP_SYS_RESOURCE",
    ),
    OtherCause(
        "network-lock",
        "network lock",
        rb"net: Locking network failed|Locking (?:network|connection) failed|.{0,40}nftables",
        "CRIU could not block the network of the tasks",
        "install iptables or nftables, or give CRIU --network-lock skip",
    ),
    OtherCause(
        "network",
        "network",
        rb"net: |veth|macvlan",
        "CRIU cannot dump or restore a network device or namespace",
        "see the message; let the engine make the network (podman, CRI-O), or --empty-ns net",
    ),
    # Tasks, kernel, images
    OtherCause(
        "traced",
        "ptrace",
        rb"Unseizable|SEIZE \d|Can't attach to|Unable to interrupt|Cannot attach to",
        "CRIU could not stop a task: another process traces it, or CRIU may not",
        "end the debugger or strace, and run CRIU as root",
    ),
    OtherCause(
        "seccomp",
        "seccomp",
        rb"seccomp: |Dumping seccomp filters|.{0,20}suspend seccomp",
        "CRIU cannot save or set the seccomp filters",
        "use a kernel with CONFIG_CHECKPOINT_RESTORE, or run the container without a seccomp "
        "profile",
    ),
    OtherCause(
        "lsm",
        "AppArmor or SELinux",
        rb"lsm|.{0,40}(?:apparmor|selinux|lsm profile)",
        "the security profile cannot be saved or set",
        "load the same profile on this machine, or give CRIU --lsm-profile",
    ),
    OtherCause(
        "sysv-ipc",
        "System V IPC",
        rb"Task \d{1,10} with SysVIPC|Sysv shmem|SysV shmem|Failed to .{0,40}IPC",
        "a task uses System V shared memory outside of an IPC namespace of its own",
        "run the tasks in an IPC namespace of their own (a container without --ipc=host)",
    ),
    OtherCause(
        "cpu",
        "CPU",
        rb"cpu: ",
        "this machine has another CPU than that of the dump",
        "restore on a machine with the same CPU features, or dump with --cpu-cap",
    ),
    OtherCause(
        "soft-dirty",
        "kernel",
        rb"BUG at criu/mem\.c",
        "the kernel has no soft-dirty tracking (CONFIG_MEM_SOFT_DIRTY), which criu pre-dump needs",
        "use `irmapdb pre-dump` and `criu dump`, which do not need it",
    ),
    OtherCause(
        "32-bit",
        "32-bit task",
        rb"Can't dump task \d{1,10} (?:running in 32-bit|with LDT)",
        "a task is a 32-bit program, and this CRIU or kernel cannot dump it",
        "use a 64-bit program",
    ),
    OtherCause(
        "task-state",
        "task",
        rb"Zombie|Individually stopped threads|Can't dump the \d{1,10} thread|Unknown task state",
        "a task is in a state that CRIU cannot dump",
        "wait until it has ended, and dump again",
    ),
    OtherCause(
        "no-space",
        "disk space",
        rb".{0,400}: No space left on device$|Can't write img file|Img trimmed",
        "the images could not be written or read completely",
        "free some space, and dump again",
    ),
    OtherCause(
        "image-version",
        "images",
        rb"Not supported images version|Too old image|Unsupported parent image|Missing required"
        rb" plugin",
        "another version of CRIU wrote the images",
        "restore with the CRIU that made the dump, or a newer one",
    ),
    OtherCause(
        "image-damaged",
        "images",
        rb"Unexpected EOF|(?:Head m|M)agic doesn't match|Failed unpacking object|Read \d{1,10}"
        rb" bytes while",
        "an image is cut off or damaged",
        "if the message names irmap-cache, remove that file; else dump again",
    ),
    OtherCause(
        "descriptor",
        "descriptor",
        rb"Unable to open fd=\d{1,10} id=",
        "CRIU could not open a descriptor of a task again. Its number is in the message, and its "
        "kind is in the line before it with -v4",
        "restore again with -v4",
        is_weak=True,
    ),
    OtherCause(
        "permission",
        "rights",
        rb".{0,400}: (?:Operation not permitted|Permission denied)$|CRIU needs to have|.{0,80}"
        rb"CAP_(?:SYS_ADMIN|CHECKPOINT_RESTORE)",
        "CRIU may not do this",
        "run it as root, with all capabilities",
    ),
    OtherCause(
        "no-such-task",
        "task",
        rb"pid \d{1,10} .{0,20}doesn't exist|No process with|.{0,80}/stat.{0,80}No such",
        "the root task does not exist any more",
        "start the task, and dump again",
    ),
)
"""In the order in which they are tried."""

_CONSEQUENCES = re.compile(
    rb"(?:Pre-)?[Dd]umping FAILED|Restoring FAILED|[\w ]{1,40} \(pid: \d{1,10}\) failed with"
    rb"|Unable to detach from|.{0,60}exited, status=|\d{1,10} (?:exited|killed by)"
    rb"|Can't (?:cure|wait)|Failed to wait|Killing processes because|cr-service|cg: cgroupd: recv"
    rb"|Wait on \d|.{0,40}Child exited|Unable to (?:receive|send).{0,20}cgroupd|RPC client reported"
    rb"|\S{0,20}: ?$|Connected TCP sockets? .{0,20}criu.org|More details",
    re.DOTALL,
)


def find_other(text: bytes) -> OtherCause | None:
    """The kind of an error that is none of fsnotify.c and irmap.c; None if it is not known."""
    return next((one for one in OTHER_CAUSES if _compiled(one.pattern).match(text)), None)


def find_consequence(text: bytes) -> bool:
    """Whether an error only follows from one before it."""
    return _CONSEQUENCES.match(text) is not None


@cache
def _compiled(pattern: bytes) -> re.Pattern[bytes]:
    return re.compile(pattern, re.DOTALL)
