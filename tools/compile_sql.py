"""Writes the SQL of the statements of tools/store_statements.py as Python.

python -m tools.compile_sql irmapdb/store/compiled.py
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.sqlite.base import SQLiteCompiler

from irmapdb.store.statement import Statement
from tools import store_statements

if TYPE_CHECKING:
    from sqlalchemy import BindParameter, ClauseElement

_HEAD = '''"""The SQL of the store. `make sql` writes this file from tools/store_statements.py."""

from __future__ import annotations

from irmapdb.store.statement import Statement

'''
_WIDTH = 88


class _Compiler(SQLiteCompiler):
    # A value becomes a part of the SQL; only what has none is a parameter.
    def visit_bindparam(self, bindparam: BindParameter[Any], **how: Any) -> str:
        if not bindparam.required:
            how["literal_binds"] = True
        return super().visit_bindparam(bindparam, **how)


_DIALECT = sqlite.dialect(paramstyle="named")
_DIALECT.statement_compiler = _Compiler


def statements() -> dict[str, Statement]:
    """The statements by their names."""
    return {name: _compiled(getattr(store_statements, name)) for name in store_statements.__all__}


def _compiled(statement: ClauseElement) -> Statement:
    return Statement(" ".join(str(statement.compile(dialect=_DIALECT)).split()))


def rendered() -> str:
    """The module."""
    parts = [_HEAD]
    for name, (sql,) in statements().items():
        lines = textwrap.wrap(sql, _WIDTH, break_long_words=False, break_on_hyphens=False)
        pieces = [*(f"{line} " for line in lines[:-1]), lines[-1]]
        parts.append(f"{name} = Statement({_literal(pieces)})\n")
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--stdin-filename", "compiled.py", "-"],
        input="".join(parts),
        text=True,
        capture_output=True,
        check=True,
    )
    return done.stdout


def _literal(pieces: list[str]) -> str:
    # In double quotes, as ruff writes them.
    escaped = (piece.replace("\\", "\\\\").replace('"', '\\"') for piece in pieces)
    return "\n".join(f'"{piece}"' for piece in escaped)


if __name__ == "__main__":
    _, to = sys.argv
    Path(to).write_text(rendered(), encoding="utf-8")
