"""Finds the systemd unit of a task by the path of its cgroup, without systemd.

Facts: systemd.unit(5), systemd.slice(5); the hierarchies of
https://systemd.io/CGROUP_DELEGATION: systemd makes a cgroup for each unit, with the name of the
unit, in cgroup v2 or in the hierarchy `name=systemd` of v1.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["cgroup_of", "unit_of"]

_SYSTEMD = ("", "name=systemd")
_WITH_TASKS = (".service", ".scope", ".socket", ".mount", ".swap")
"""The types of units whose cgroups have tasks. A slice has other units."""


def unit_of(cgroups: Mapping[str, str]) -> str | None:
    """The unit of a task with these cgroups, hierarchy → path; None if it is in none.

    A unit of a user's own systemd, or of a systemd in a container, stands behind the unit that it
    is in: `user@1000.service/code.service`. So a tenant who makes a cgroup with the name of another
    unit cannot be taken for that unit.
    """
    for hierarchy in _SYSTEMD:
        # systemd puts `_` before a name that the kernel could take for a file of its own.
        parts = (part.removeprefix("_") for part in cgroups.get(hierarchy, "").split("/"))
        units = [part for part in parts if part.endswith(_WITH_TASKS)]
        if units:
            return "/".join(units)
    return None


def cgroup_of(cgroups: Mapping[str, str]) -> str | None:
    """The path of the task's cgroup: that of cgroup v2, or the longest one of v1.

    None if all are the root. Many controllers of v1 have no cgroup for a task.
    """
    v2 = cgroups.get("", "")
    longest = max(cgroups.values(), key=len, default="")
    found = v2 if len(v2) > 1 else longest
    return found if len(found) > 1 else None
