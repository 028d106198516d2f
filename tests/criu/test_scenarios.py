"""Each scenario dumped and restored by CRIU alone, and with the hook.

Two promises. Each step that passes without the hook passes with it. A watch on an overlay that CRIU
cannot dump alone can be dumped with the hook.
"""

from __future__ import annotations

import os

import pytest

from tests.support.criu_scenarios import SCENARIOS
from tests.support.criu_task import FILESYSTEMS, NAMESPACES, play, stage
from tests.support.hook import hook_program

# All cells take some minutes a version; by itself a run has half of them.
_ALL = bool(os.environ.get("IRMAPDB_ALL_SCENARIOS"))
_PLACES = [
    (filesystem, namespace)
    for filesystem in FILESYSTEMS
    for namespace in NAMESPACES
    if _ALL or (filesystem == "overlay") == (namespace == "own")
]

# No hook can change these: CRIU has no field for them in its images, or no name for the restore.
_LOST = {
    # A deleted file is restored as another inode, without its watch; see docs/criu.md.
    "deleted_file": {"closed, by the file"},
    # CRIU prints that it drops the unread events.
    "queued_events": {"kept"},
    # It opens the path to restore the watch, and so follows the link.
    "symbolic_link": {"link"},
    "fanotify_filesystem": {"filesystem"},
    "fanotify_namespace": {"namespace"},
}

# Of these CRIU 4.1 and 4.2 need no path of a file on the overlay.
_NO_PATH_NEEDED = {"child_namespace", "fanotify_mount", "swapped_names"}


def _lost(scenario, filesystem, namespace, version):
    """The steps that fail with the hook too."""
    on_overlay = filesystem == "overlay"
    if scenario == "child_namespace" and namespace == "host":
        return {"dump"}  # two mount namespaces, one of them the host's: CRIU cannot dump its mounts
    if on_overlay and scenario == "removed_directory":
        return {"dump"}
    if on_overlay and scenario == "deleted_file" and version < (4, 3):
        return {"dump"}
    if scenario == "symbolic_link" and not on_overlay:
        # Dumped without a path; only in a mount namespace it is restored, by its handle.
        return {"restore"} if namespace == "host" else set()
    return _LOST.get(scenario, set())


@pytest.mark.slow
@pytest.mark.parametrize(("filesystem", "namespace"), _PLACES)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_hook_takes_nothing_away_and_helps_on_overlay(
    scenario, filesystem, namespace, area, each_criu, tmp_path
):
    criu = each_criu
    version = tuple(map(int, criu.version.split(".")))
    with stage(filesystem, namespace, area) as where:
        alone = play(SCENARIOS[scenario], where, criu, tmp_path, None)
        helped = play(SCENARIOS[scenario], where, criu, tmp_path, hook_program(tmp_path))
    assert alone.passed <= helped.passed, f"alone {alone}\nhelped {helped}"
    assert helped.failed == _lost(scenario, filesystem, namespace, version), str(helped)
    if filesystem == "overlay" and version < (4, 3) and scenario not in _NO_PATH_NEEDED:
        assert alone.failed == {"dump"}, str(alone)
