"""`hook --install podman` says so where the crun of the machine will not read the file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from irmapdb.criu.crun import why_not_read

_NEW = b"\x7fELF criu_set_config_file\0"
_OLD = b"\x7fELF criu_set_images_dir_fd\0"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only directory of PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def _crun(directory: Path, content: bytes) -> None:
    (directory / "crun").write_bytes(content)
    (directory / "crun").chmod(0o755)


def test_no_crun_is_no_reason(programs: Path) -> None:
    assert why_not_read() == ""
    assert programs.exists()


@pytest.mark.parametrize(
    ("content", "library", "why"),
    [
        (_OLD, "libc.so.6", "too old"),
        (b"", "libc.so.6", "cannot be read"),
        (_NEW, "libc.so.6", "older than CRIU 4.2"),
        (_NEW, "libnone.so.9", "no libnone"),
    ],
)
def test_why_not(content: bytes, library: str, why: str, programs: Path) -> None:
    _crun(programs, content)
    said = why_not_read(library)
    assert why in said
    assert str(programs / "crun") in said


@pytest.mark.parametrize(("runtime", "code"), [("podman", 3), ("crun", 3), ("runc", 0)])
def test_the_messages_of_install(runtime: str, code: int, programs: Path, tmp_path: Path) -> None:
    _crun(programs, _OLD)
    hook = tmp_path / "own-hook"
    hook.write_text("#!/bin/sh\n")
    hook.chmod(0o755)
    directory = tmp_path / "criu"
    command = [sys.executable, "-m", "irmapdb", "hook", "--install", runtime]
    done = subprocess.run(
        [*command, "--script", str(hook), "--criu-dir", str(directory)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{programs}:/usr/bin:/bin"},
    )
    assert done.returncode == code, done.stderr
    assert ("before each dump" in done.stderr) == (code == 0)
    assert ("--install criu" in done.stderr) == (code == 3)
    assert (directory / "runc.conf").exists() == (runtime != "crun")
