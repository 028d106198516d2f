"""CRIU in each version that check knows, as Debian's suites of today have them.

The suites change: apt is asked for the suite of a version if the version is not unpacked yet. Each
version has a folder of its own beside the folder of `packages`, and runs in the same way.

Sources: apt-cache(8), madison.
"""

from __future__ import annotations

import functools
import platform
import re
from typing import TYPE_CHECKING, NamedTuple

from tests.support import packages
from tests.support.packages import RigError
from tests.support.programs import ProgramError, run

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["KNOWN", "criu_of", "version_of"]

KNOWN = ("4.1", "4.2", "4.3")
"""The versions that `irmapdb check` knows."""

_SUITES = ("trixie", "forky", "sid", "experimental")
_BESIDE = {"experimental": ("sid",)}
"""The further suites that a suite needs."""

_LAYOUT = 1


class _Offer(NamedTuple):
    """A package of CRIU in a suite."""

    suite: str
    package_version: str

    @property
    def minor(self) -> tuple[int, ...]:
        return tuple(map(int, re.findall(r"\d+", self.package_version)[:2]))


def version_of(program: Path) -> str:
    """`4.2`, as the program says it."""
    said = run(program, "--version")
    found = re.search(rb"^Version: (\d+\.\d+)", said, re.MULTILINE)
    return found[1].decode() if found else said.decode()


def _offers(state: Path) -> list[_Offer]:
    # A suite that is no more is a warning of apt's, and no offer.
    packages.write_sources(state, _SUITES)
    run("apt-get", *packages.apt_options(state), "update")
    lines = run("apt-cache", *packages.apt_options(state), "madison", "criu").decode().splitlines()
    fields = [[part.strip() for part in line.split("|")] for line in lines]
    offers = [_Offer(where.split()[1].partition("/")[0], version) for _, version, where in fields]
    return sorted(offers, key=lambda offer: _SUITES.index(offer.suite))


def _fetch(version: str, top: Path) -> None:
    def check(folder: Path) -> None:
        packages.check_criu(folder)

    with packages.built_aside(top, check) as (aside, state):
        offers = _offers(state)
        minor = tuple(map(int, version.split(".")))
        offer = next((one for one in offers if one.minor == minor), None)
        if offer is None:
            there = ", ".join(f"{one.package_version} in {one.suite}" for one in offers)
            message = f"no suite of Debian has CRIU {version} today ({there or 'none answers'})"
            raise RigError(message)
        packages.write_sources(state, (offer.suite, *_BESIDE.get(offer.suite, ())))
        packages.extract(state, [f"criu={offer.package_version}"], aside, offer.suite)
        packages.write_wrappers(aside, ["criu"])


@functools.cache
def criu_of(version: str) -> Path:
    """The program of this version, `4.2`; RigError where it cannot be had or does not work."""
    common = packages.rig() / "criu"
    if version_of(common) == version:
        return common
    cache = packages.cache_directory()
    top = cache / f"criu-{version}-{platform.machine()}-{_LAYOUT}"
    with packages.locked(cache):
        try:
            packages.check_criu(top)
        except RigError:
            try:
                _fetch(version, top)
            except ProgramError as error:
                message = f"cannot get CRIU {version} from Debian's suites: {error}"
                raise RigError(message) from error
    return top / "bin" / "criu"
