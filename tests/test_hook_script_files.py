"""The place of the installed script: made, shared by several files, and removed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from irmapdb.criu import hook_script
from irmapdb.errors import FileError

if TYPE_CHECKING:
    from pathlib import Path


def test_the_script_is_removed_with_the_last_file_that_calls_it(tmp_path: Path) -> None:
    script, program = tmp_path / "lib" / "irmapdb" / "hook", tmp_path / "program"
    one, two = tmp_path / "one.conf", tmp_path / "two" / "runc.conf"
    two.parent.mkdir()
    for file in (one, two):
        file.write_text(f"action-script {script}\n")
        hook_script.write_script(script, program, file)
        hook_script.write_script(script, program, file)
    assert script.stat().st_mode & 0o777 == 0o755
    assert script.read_text().count("# called from: ") == 2
    one.unlink()
    assert not hook_script.release_script(script, one)
    two.write_text("")
    assert hook_script.release_script(script, two)
    assert not script.parent.exists()
    assert not hook_script.release_script(script, two)


def test_a_program_of_others_is_never_removed(tmp_path: Path) -> None:
    program = tmp_path / "irmapdb-hook"
    program.write_text("#!/usr/bin/python3\nfrom irmapdb.criu.hook import main\n")
    assert not hook_script.release_script(program, tmp_path / "runc.conf")
    assert program.exists()


def test_no_script_where_others_can_replace_it(tmp_path: Path) -> None:
    public = tmp_path / "public"
    public.mkdir()
    public.chmod(0o777)
    with pytest.raises(FileError, match="belongs to others"):
        hook_script.write_script(public / "hook", tmp_path / "program", tmp_path / "runc.conf")
    assert list(public.iterdir()) == []
