"""The demo, as `make demo` runs it: its sentences are true."""

import os
import subprocess
import sys

from tests.support.criu_versions import criu_of
from tests.support.features import require_root
from tests.support.hook import CHECKOUT


def test_criu_fails_alone_and_passes_with_the_paths():
    require_root()
    criu = criu_of("4.2")
    path = f"{criu.parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, CHECKOUT / "demo" / "run.py"],
        env={**os.environ, "PATH": path, "COLUMNS": "80"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="backslashreplace",
        check=False,
    )
    assert done.returncode == 0, done.stdout
    alone, _, helped = done.stdout.partition("$ irmapdb pre-dump")
    assert "Can't dump that handle" in alone
    assert "Dumping FAILED" in alone
    assert "so the dump failed" in alone
    assert "Dumping task" not in done.stdout, "of CRIU's log only errors and the result"
    assert "Dumping finished successfully" in helped
    assert "4 there" in helped
    assert "moved" in helped
