"""The man pages: one a command, with all that `--help` has, as man(1) shows them."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.cli import irmapdb
from tests.support.features import require_program

_TOOL = Path(__file__).parent.parent / "tools" / "manpages.py"


def _manpages():
    spec = importlib.util.spec_from_file_location("manpages", _TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


manpages = _manpages()
PAGES = manpages.pages()


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("man") / "man1"
    written = manpages.write_pages(path)
    assert sorted(written) == sorted(path.iterdir())
    return path


def _shown(page: Path) -> str:
    require_program("man")
    environment = {**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8", "MAN_KEEP_FORMATTING": ""}
    done = subprocess.run(
        ["man", "--warnings", "-l", page],
        capture_output=True,
        check=True,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    assert done.stderr == "", "groff warns of nothing"
    return re.sub(".\b", "", done.stdout)


def test_every_command_has_one(directory: Path) -> None:
    told = irmapdb("--help").out
    names = {page.stem for page in directory.iterdir()}
    commands = re.findall(r"^│ ([a-z-]+) ", told.partition("Commands")[2], re.MULTILINE)
    assert len(commands) > 10
    assert names >= {f"irmapdb-{name}" for name in commands}
    assert names >= {"irmapdb", "irmapdb-db-upgrade", "irmapdb-db-backup"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_fits_a_terminal_and_has_what_help_has(directory: Path, page) -> None:
    shown = _shown(directory / f"{page.name}.1")
    assert max(map(len, shown.splitlines())) <= 80
    titles = [line for line in shown.splitlines() if re.match(r"[A-Z]+( [A-Z]+)*$", line)]
    assert titles[:2] == ["NAME", "SYNOPSIS"]
    assert "OPTIONS" in titles
    assert "EXIT STATUS" in titles
    told = irmapdb(*page.words[1:], "--help").out
    options = re.findall(r"(?<![\w-])--?[a-zA-Z][a-z-]*", told.partition("─ Options")[2])
    assert "--help" in options
    words = " ".join(shown.replace(" \\\n", " ").split())
    missing = [option for option in options if option not in words]
    assert not missing
    examples = re.findall(r"^ (irmapdb .*|criu .*)", told.partition("Example")[2], re.MULTILINE)
    assert ("EXAMPLES" in titles) == bool(examples)
    for example in examples:
        assert " ".join(example.split()) in words


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_whatis_and_apropos_can_read_the_name(directory: Path, page) -> None:
    require_program("lexgrog")
    done = subprocess.run(
        ["lexgrog", directory / f"{page.name}.1"], capture_output=True, check=True, text=True
    )
    assert f'"{page.name} - ' in done.stdout


def test_quotes_and_dashes_are_those_that_a_shell_takes(directory: Path) -> None:
    shown = _shown(directory / "irmapdb-pre-dump.1")
    assert "jq '.watches[] | select(.path == null)'" in shown
    assert "pre-dump" in shown
    assert "\N{HYPHEN}" not in shown


def test_a_long_example_is_folded_between_words() -> None:
    long = "irmapdb sql 'SELECT path FROM live_mappings WHERE ino = 3' --db /var/lib/some/where.db"
    assert manpages._folded(long) == [
        "irmapdb sql 'SELECT path FROM live_mappings WHERE ino = 3' --db \\",
        "    /var/lib/some/where.db",
    ]
    assert manpages._folded("irmapdb ps") == ["irmapdb ps"]


def test_a_line_that_begins_like_a_request_is_text() -> None:
    assert manpages._text(".path is `a\\b` 'x'") == "\\&.path is \\fBa\\eb\\fR 'x'"
    assert manpages._code("'a' ~ ^ `x` -n") == "\\(aqa\\(aq \\(ti \\(ha \\(gax\\(ga \\-n"
