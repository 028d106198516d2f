"""bare_copy.py URL FROM TO: copies rows from one database to another by COPY, prints the time.

The time is that of COPY FROM STDIN into the tables of irmapdb, in one transaction; reading the rows
from the first database is not in it.
"""

from __future__ import annotations

import sys
import time

import psycopg

_TABLES = ("run", "run_source", "listed_watch", "listed_tried", "change", "mapping")


def _main(source: str, target: str) -> float:
    rows = {}
    with psycopg.connect(source) as connection, connection.cursor() as cursor:
        for table in _TABLES:
            # COPY (SELECT …): of a table with partitions.
            with cursor.copy(f"COPY (SELECT * FROM {table}) TO STDOUT") as copy:  # noqa: S608
                rows[table] = b"".join(copy)
        weeks = "SELECT DISTINCT period FROM run UNION SELECT DISTINCT period FROM change"
        periods = cursor.execute(weeks).fetchall()
    with psycopg.connect(target) as connection, connection.cursor() as cursor:
        for (period,) in periods:
            cursor.execute("SELECT irmapdb_add_period(%s)", (period,))
        connection.commit()
        begun_s = time.perf_counter()
        for table, data in rows.items():
            with cursor.copy(f"COPY {table} FROM STDIN") as copy:
                for start in range(0, len(data), 1 << 18):
                    copy.write(data[start : start + (1 << 18)])
        connection.commit()
        return time.perf_counter() - begun_s


if __name__ == "__main__":
    print(_main(*sys.argv[1:]))
