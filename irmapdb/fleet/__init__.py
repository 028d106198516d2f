"""Brings the rows of many nodes' databases into one PostgreSQL database, once each.

`push` sends the rows that the server does not have yet; `schema` makes and upgrades its tables;
`ask` runs SQL there. Only this package imports psycopg, which the extra `irmapdb[fleet]` installs;
no other package imports this one, except the command line.
"""
