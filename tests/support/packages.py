"""CRIU and xfsprogs from a newer Debian than this machine's, without installing them.

Debian 12's criu (3.17.1) does not start on a current kernel, and its mkfs.xfs knows no parent
pointers. So the packages of Debian 13 and all they need are downloaded by apt, with a state
directory of its own and this machine's repository address and keys, unpacked side by side into
one folder, and run with that folder's own dynamic loader and libraries.

The folder is kept between runs in ${IRMAPDB_TEST_CACHE:-${XDG_CACHE_HOME:-~/.cache}/irmapdb-tests}.
`python -m tests.support.packages` makes it if it is missing, and prints its programs.

Sources: apt-get(8), apt.conf(5), sources.list(5), dpkg-deb(1), ld.so(8).
"""

from __future__ import annotations

import fcntl
import functools
import os
import platform
import shutil
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.programs import ProgramError, run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

__all__ = [
    "RigError",
    "apt_options",
    "built_aside",
    "cache_directory",
    "check_criu",
    "crit_wrapper",
    "criu_wrapper",
    "extract",
    "locked",
    "mkfs_xfs_wrapper",
    "rig",
    "write_sources",
    "write_wrappers",
    "xfs_db_wrapper",
]

_SUITE = "trixie"
_PACKAGES = ("criu", "python3-pycriu", "xfsprogs")
# Increase it when the content of the folder changes, so that older folders are not used.
_LAYOUT = 1
# The keys that Debian signs its archives with; from the package debian-archive-keyring, which
# knows those of Debian 13 from 2023.3+deb12u2 on.
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

# A wrapper finds the folder by its own place, because the folder is built aside and renamed.
_HEAD = """\
#!/bin/sh
self=$(readlink -f "$0") && top=${self%/bin/*}
"""
_RUN = 'exec "$top/LOADER" --library-path "$top/LIBRARIES"'
_WRAPPERS = {
    "criu": f'{_RUN} "$top/usr/sbin/criu" "$@"',
    # crit is Python; it gets the interpreter and the modules it was packaged with (-S: no site
    # directories of this machine).
    "crit": (
        'export PYTHONHOME="$top/usr" PYTHONPATH="$top/usr/lib/python3/dist-packages"\n'
        f'{_RUN} "$top/usr/bin/python3" -S "$top/usr/bin/crit" "$@"'
    ),
    "inotify-info": f'{_RUN} "$top/usr/bin/inotify-info" "$@"',
    "mkfs.xfs": f'{_RUN} "$top/usr/sbin/mkfs.xfs" "$@"',
    "xfs_db": f'{_RUN} "$top/usr/sbin/xfs_db" "$@"',
}
_OF_THE_RIG = ("criu", "crit", "mkfs.xfs", "xfs_db")


class RigError(Exception):
    """The packages cannot be downloaded, or do not work; the message has the reason."""


def cache_directory() -> Path:
    """The directory of the folders between runs; it need not exist yet."""
    own = os.environ.get("IRMAPDB_TEST_CACHE")
    if own:
        return Path(own).absolute()
    home = os.environ.get("XDG_CACHE_HOME")
    return (Path(home) if home else Path.home() / ".cache") / "irmapdb-tests"


def _repository() -> str:
    # Only apt knows where this machine gets its packages from. The security archive has another
    # label; updates of Debian itself come from the same place, hence the set.
    form = "$(CREATED_BY)|$(ORIGIN)|$(LABEL)|$(REPO_URI)"
    targets = run("apt-get", "indextargets", "--format", form).decode().splitlines()
    fields = (line.split("|") for line in targets)
    found = {uri for by, *who, uri in fields if by == "Packages" and who == ["Debian", "Debian"]}
    if not found:
        message = "apt knows no Debian archive; is this Debian, and was `apt-get update` run?"
        raise RigError(message)
    return min(found)


def apt_options(state: Path) -> list[str]:
    """Options that give apt `state` for its lists and archives, and nothing of this machine."""
    for directory in ("lists/partial", "archives/partial"):
        (state / directory).mkdir(parents=True, exist_ok=True)
    # An empty status file: nothing counts as installed, so every dependency is downloaded.
    (state / "status").touch()
    options = {
        "Dir::Etc::SourceList": state / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "Dir::State": state,
        "Dir::State::Status": state / "status",
        "Dir::Cache": state,
        # The state directory may be one that apt's own user cannot read.
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
    }
    return [f"-o{key}={value}" for key, value in options.items()]


def write_sources(state: Path, suites: Iterable[str]) -> None:
    """Make these suites of Debian all that apt knows with `apt_options(state)`."""
    if not _KEYRING.exists():
        message = f"no {_KEYRING}; install debian-archive-keyring"
        raise RigError(message)
    repository = _repository()
    lines = (f"deb [signed-by={_KEYRING}] {repository} {suite} main\n" for suite in suites)
    (state / "sources.list").write_text("".join(lines))


def extract(state: Path, packages: Iterable[str], top: Path, release: str = "") -> None:
    """Download packages and all they depend on, and unpack them side by side into `top`.

    Dependencies come from the suite `release` where several have them.
    """
    for old in (state / "archives").glob("*.deb"):
        old.unlink()
    flags = ["--yes", "--download-only", "--no-install-recommends"]
    flags += ["--target-release", release] if release else []
    run("apt-get", *apt_options(state), "install", *flags, *packages)
    for package in sorted((state / "archives").glob("*.deb")):
        run("dpkg-deb", "--extract", package, top)


def _loader(top: Path) -> Path:
    # /lib64/ld-linux-x86-64.so.2, /lib/ld-linux-aarch64.so.1, …: beside libc.so.6.
    found = sorted(top.glob("usr/lib/*-linux-gnu*/ld-linux-*.so.*"))
    if not found:
        message = f"no dynamic loader below {top}"
        raise RigError(message)
    return found[0].relative_to(top)


def write_wrappers(top: Path, names: Iterable[str] = _OF_THE_RIG) -> None:
    """Scripts in `top/bin` that start the programs with the folder's own loader."""
    loader = _loader(top)
    (top / "bin").mkdir()
    for name in names:
        command = _WRAPPERS[name]
        wrapper = top / "bin" / name
        body = command.replace("LOADER", str(loader)).replace("LIBRARIES", str(loader.parent))
        wrapper.write_text(f"{_HEAD}{body}\n")
        wrapper.chmod(0o755)


def _check(top: Path) -> None:
    """Raise RigError unless every program below `top` starts and, as root, CRIU is content."""
    # crit's modules may be compiled into the folder, which makes it start in a third of the time.
    env = {"PYTHONDONTWRITEBYTECODE": ""}
    try:
        for name, option in (("crit", "--version"), ("mkfs.xfs", "-V"), ("xfs_db", "-V")):
            run(top / "bin" / name, option, env=env)
    except ProgramError as error:
        message = f"{top} does not work: {error}"
        raise RigError(message) from error
    check_criu(top)


def check_criu(top: Path) -> None:
    """Raise RigError unless the CRIU below `top` starts and, as root, is content."""
    try:
        # Without root there is no dump, but crit still reads images.
        verdict = run(top / "bin" / "criu", "check" if os.geteuid() == 0 else "--version")
    except ProgramError as error:
        message = f"{top} does not work: {error}"
        raise RigError(message) from error
    if os.geteuid() == 0 and b"Looks good." not in verdict:
        message = f"criu check says {verdict!r}"
        raise RigError(message)


@contextmanager
def built_aside(top: Path, check: Callable[[Path], None]) -> Iterator[tuple[Path, Path]]:
    """A folder to fill, and a state directory for apt; then it is checked, and becomes `top`."""
    aside = Path(tempfile.mkdtemp(prefix=f".{top.name}.", dir=top.parent))
    try:
        with tempfile.TemporaryDirectory(prefix=".apt.", dir=top.parent) as state:
            yield aside, Path(state)
        aside.chmod(0o755)
        check(aside)
        if top.exists():
            # One that was there did not work, or we would not be here.
            shutil.rmtree(top)
        aside.rename(top)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _build(top: Path) -> None:
    try:
        with built_aside(top, _check) as (aside, state):
            write_sources(state, [_SUITE])
            run("apt-get", *apt_options(state), "-oAPT::Update::Error-Mode=any", "update")
            extract(state, _PACKAGES, aside)
            write_wrappers(aside)
    except ProgramError as error:
        message = f"cannot get {', '.join(_PACKAGES)} of Debian {_SUITE}: {error}"
        raise RigError(message) from error


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Two test runs at once: the second waits, and then finds the work done."""
    with (directory / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@functools.cache
def rig() -> Path:
    """The folder's `bin`, for the first part of a PATH. Makes the folder if it is missing.

    RigError if that fails, or if the programs do not work. Each call tries again.
    """
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    top = cache / f"{_SUITE}-{platform.machine()}-{_LAYOUT}"
    with locked(cache):
        try:
            _check(top)
        except RigError:
            _build(top)
    return top / "bin"


def criu_wrapper() -> Path:
    """CRIU 4.1.1, which as root has passed its own `criu check` here."""
    return rig() / "criu"


def crit_wrapper() -> Path:
    """The image tool of the same CRIU."""
    return rig() / "crit"


def mkfs_xfs_wrapper() -> Path:
    """mkfs.xfs of xfsprogs 6.13: takes `-n parent=1`."""
    return rig() / "mkfs.xfs"


def xfs_db_wrapper() -> Path:
    """xfs_db of the same xfsprogs."""
    return rig() / "xfs_db"


if __name__ == "__main__":
    try:
        for program in sorted(rig().iterdir()):
            sys.stdout.write(f"{program}\n")
    except RigError as problem:
        sys.exit(str(problem))
