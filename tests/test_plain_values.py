"""Plain values of options: read as typer reads them, without the slow import of pydantic."""

from __future__ import annotations

import json
import subprocess
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from typer.main import get_command

from irmapdb.commands.plain_values import read_plainly
from tests.support.hook import CHECKOUT


class Form(StrEnum):
    """A choice."""

    JSON = "json"
    IMAGE = "image"


def _command() -> Any:
    app = typer.Typer(add_completion=False)

    @app.command()
    def _(
        words: Annotated[list[str] | None, typer.Argument()] = None,
        path: Annotated[Path | None, typer.Option(readable=False)] = None,
        there: Annotated[Path | None, typer.Option(exists=True)] = None,
        number: Annotated[int, typer.Option()] = 3,
        few: Annotated[int, typer.Option(min=1, max=9)] = 2,
        seconds: Annotated[float, typer.Option(min=0.5)] = 1,
        loud: Annotated[int, typer.Option("-v", count=True)] = 0,
        name: Annotated[str, typer.Option()] = "x",
        form: Annotated[Form, typer.Option()] = Form.JSON,
        kind: Annotated[Literal["a", "b"], typer.Option()] = "a",
        flag: Annotated[bool, typer.Option()] = False,  # noqa: FBT002 typer's
    ) -> list[Any]:
        return [words, path, there, number, few, seconds, loud, name, form, kind, flag]

    return get_command(app)


def _read(words: tuple[str, ...], *, plainly: bool) -> tuple[Any, ...]:
    command = _command()
    if plainly:
        for parameter in command.params:
            read_plainly(parameter)
    try:
        values = command(list(words), standalone_mode=False)
    except typer.BadParameter.__mro__[1] as error:  # typer's base class of all wrong usage
        return type(error), str(error)
    return tuple((type(value), value) for value in values)


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("one", "two"),
        ("--path", "."),
        ("--path", "/no/such/file"),
        ("--there", "/"),
        ("--there", "/no/such/file"),
        *(
            (option, text)
            for option in ("--number", "--few")
            for text in ["0", "5", "007", "9", "10", "-1"]
        ),
        *(("--number", text) for text in ("x", "", "1.5", "1_0", " 1", "٣", "9" * 30)),
        *(("--seconds", text) for text in ("2", "2.5", "0.1", "1e3", "nan", "x")),
        ("-vvv",),
        ("--name", ""),
        ("--name", "text"),
        *(("--form", text) for text in ("json", "image", "JSON", "x")),
        *(("--kind", text) for text in ("a", "b", "A", "x")),
        ("--flag",),
        ("--no-flag",),
    ],
)
def test_values_are_read_as_typer_reads_them(words: tuple[str, ...]) -> None:
    assert _read(words, plainly=True) == _read(words, plainly=False)


_CALLS = (
    "pre-dump -t 999999999 -W . --irmap-scan-path /x -v",
    "dump -t 999999999 --timeout-of-none",
    "check -t 999999999 --json",
    "lookup /srv",
    "sql unproved",
    "audit --dev 1:2",
    "ps -t 999999999",
    "show missing",
    "convert missing other --to json",
    "import missing",
    "export other",
    "prune --keep-runs 3 --dry-run",
    "db current",
    "hook --status",
    "--version",
)


def test_no_command_imports_pydantic(tmp_path: Path) -> None:
    """Its import takes several times as long as Python's own start."""
    code = (
        "import json, sys\n"
        f"sys.path.insert(0, {str(CHECKOUT)!r})\n"
        "from irmapdb.commands import main\n"
        "slow = {}\n"
        f"for call in {_CALLS!r}:\n"
        "    sys.argv = ['irmapdb', *call.split()]\n"
        "    try: main()\n"
        "    except SystemExit: pass\n"
        "    slow[call] = 'pydantic' in sys.modules\n"
        "print(json.dumps(slow), file=sys.__stderr__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE, check=True, text=True
    )
    assert json.loads(done.stderr.splitlines()[-1]) == dict.fromkeys(_CALLS, False)
