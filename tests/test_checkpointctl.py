"""The plugin of checkpointctl, by its convention: cmd/plugin.go of checkpointctl.

The checkpointctl of Debian's suites (1.3.0) has no plugins yet, so the convention is pinned here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from shutil import which

import pytest

from tests.support.archives import engine_files, files_img, tar_of

_ROOT = Path(__file__).parent.parent


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    made = tmp_path / "web.tar"
    made.write_bytes(tar_of(engine_files("podman", {"files.img": files_img([b"/etc/nginx"])})))
    return made


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """An executable checkpointctl-irmap, as pip makes it from the entry point."""
    program = tmp_path / "bin" / "checkpointctl-irmap"
    program.parent.mkdir()
    (point,) = entry_points(group="console_scripts", name=program.name)
    module, _, function = point.value.partition(":")
    program.write_text(f"#!{sys.executable}\nfrom {module} import {function}\n{function}()\n")
    program.chmod(0o755)
    return program


def _run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_it_describes_itself_in_one_line_with_exit_code_42(plugin: Path) -> None:
    done = _run(plugin, "--plugin-description")
    assert done.returncode == 42
    assert done.stdout.count("\n") == 1
    assert "inotify" in done.stdout
    assert done.stderr == ""


def test_nothing_is_imported_for_the_description(plugin: Path) -> None:
    # checkpointctl waits 500 ms.
    code = f"""
import sys
sys.path.insert(0, {str(_ROOT)!r})
from irmapdb.checkpointctl import main
sys.argv[1:] = ["--plugin-description"]
try:
    main()
except SystemExit:
    print(*sorted({{"typer", "re", "typing", "irmapdb.commands"}} & {{*sys.modules}}))
"""
    done = _run(sys.executable, "-IS", "-c", code)
    assert done.stdout.splitlines()[1:] == [""], done


@pytest.mark.parametrize("order", ["before", "behind"])
def test_it_checks_an_archive(plugin: Path, archive: Path, tmp_path: Path, order: str) -> None:
    # checkpointctl executes it with the words that follow `irmap`.
    done = _run(plugin, archive)
    assert done.returncode == 0, done
    assert "/etc/nginx" in done.stdout
    assert "docker.io/library/nginx:latest" in done.stdout
    root = tmp_path / "root"
    root.mkdir()
    options = ["--root", str(root), "--json"]
    words = [*options, archive] if order == "before" else [archive, *options]
    done = _run(plugin, *words)
    assert done.returncode == 3
    assert json.loads(done.stdout)["watches"][0]["verdict"] == "missing"
    assert _run(plugin, f"--root={root}", archive).returncode == 3
    assert _run(plugin, "--json", "--", archive).returncode == 0


def test_without_an_archive_it_has_a_usage_of_its_own(plugin: Path, archive: Path) -> None:
    for asked in ("--help", "-h"):
        done = _run(plugin, asked)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("Usage: checkpointctl irmap ARCHIVE [--root PATH]")
    # --all is an option of `check`, but without --images.
    for words in ((), ("--json",), ("--all",), ("--root", archive)):
        done = _run(plugin, *words)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            "irmapdb: no archive; checkpointctl irmap ARCHIVE [--root PATH] [--json] [--all-rows]\n"
        )


def test_checkpointctl_itself(plugin: Path, archive: Path) -> None:
    """The directory of its installation."""
    program = which("checkpointctl")
    if program is None:
        pytest.skip("no checkpointctl on PATH")
    path = os.pathsep.join((str(plugin.parent), os.environ["PATH"]))
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(_ROOT)}
    done = subprocess.run(
        [program, "irmap", archive], capture_output=True, text=True, check=False, env=environment
    )
    if "unknown command" in done.stderr:
        pytest.skip("this checkpointctl has no plugins")
    assert "/etc/nginx" in done.stdout
