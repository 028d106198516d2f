"""Runs a statement whose SQL was written beforehand.

SQLAlchemy writes the SQL when irmapdb is developed: `tools/store_statements.py` has the statements,
and `make sql` writes them to `irmapdb.store.compiled`. Rows go directly to SQLite, in the form of
irmapdb.store.values.
"""

from __future__ import annotations

from itertools import islice
from operator import itemgetter

from irmapdb.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence
    from typing import Any

__all__ = ["Statement"]

_BATCH = 2000
_PARAMETER = r":(\w+)"


class Statement(Record):
    """A statement."""

    sql: str
    """With `:name` for each parameter, which may be there twice."""

    def run(self, raw: sqlite3.Connection, **values: Any) -> sqlite3.Cursor:  # noqa: ANN401
        """Run it once. `values` has a value for each parameter."""
        return raw.execute(self.sql, values)

    def fetch(self, raw: sqlite3.Connection, **values: Any) -> list[tuple[Any, ...]]:  # noqa: ANN401
        """All rows of the answer."""
        return self.run(raw, **values).fetchall()

    def first(self, raw: sqlite3.Connection, **values: Any) -> Any:  # noqa: ANN401
        """The first value of the first row; None if there is no row."""
        row = self.run(raw, **values).fetchone()
        return None if row is None else row[0]

    def run_for_each(
        self, raw: sqlite3.Connection, fields: Sequence[str], rows: Iterable[Sequence[Any]]
    ) -> int:
        """Run it for each row, in batches; returns the number of rows.

        `fields` are the names of the values in a row. A field that is no parameter is left out.
        """
        import re  # noqa: PLC0415 the hook answers without it

        names = re.findall(_PARAMETER, self.sql)
        sql = re.sub(_PARAMETER, "?", self.sql)  # a dict for each row would take longer
        arranged = map(itemgetter(*map(fields.index, names)), rows)
        count = 0
        while batch := list(islice(arranged, _BATCH)):
            raw.executemany(sql, batch)
            count += len(batch)
        return count
