"""The list of the last runs of the hook: every line is read back, and the file stays short."""

from __future__ import annotations

import os
import stat
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from irmapdb.criu import hook_runs
from irmapdb.criu.hook_runs import HookRun, append_run, read_runs


def _run(**fields: object) -> HookRun:
    run = HookRun(
        at_s=time.time(),
        by="hook",
        outcome="done",
        took_s=0.25,
        paused=False,
        watches=3,
        resolved=2,
        pid=4711,
        container="c" * 64,
        work=b"/w",
        text="3 watches",
    )
    return run._replace(**fields)


_NAMES = st.binary(max_size=40).filter(lambda name: b"\0" not in name)


@given(
    work=_NAMES.map(lambda name: b"/" + name),
    container=_NAMES.map(os.fsdecode),
    text=st.text(max_size=60),
    paused=st.booleans(),
    watches=st.none() | st.integers(0, 10**6),
)
def test_a_run_comes_back(tmp_path_factory, work, container, text, paused, watches):
    directory = tmp_path_factory.mktemp("run", numbered=True)
    run = _run(work=work, container=container, text=text, paused=paused, watches=watches)
    append_run(directory, run)
    append_run(directory, _run(text="second"))
    first, second = read_runs(directory).last
    assert first._replace(at_s=run.at_s, text=text) == run._replace(
        container="" if container == "-" else container
    )
    assert first.text.isprintable()
    assert first.at_s == pytest.approx(run.at_s, abs=0.001)
    assert second.text == "second"


def test_sums_stay_after_the_removal_of_old_lines(tmp_path):
    many = hook_runs._LONG_BYTES // 150
    for number in range(many):
        outcome = "failed" if number % 3 == 0 else "done"
        append_run(tmp_path, _run(outcome=outcome, took_s=0.5, paused=number % 2 == 0))
    path = tmp_path / hook_runs.NAME
    assert path.stat().st_size < hook_runs._LONG_BYTES
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = read_runs(tmp_path)
    assert len(found.last) == 200
    assert sum(one.runs for one in found.totals) == many
    failed = next(one for one in found.totals if one.outcome == "failed")
    assert failed.runs == (many + 2) // 3
    assert failed.took_s == pytest.approx(failed.runs / 2)
    assert sum(one.paused_s for one in found.totals) == pytest.approx((many + 1) // 2 / 2)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\xff\xfe\x00",
        b"1\tnow\thook\tdone\t1\t0\t1\t1\t1\t-\t-\ttext",
        b"1\t1\tnothing\tdone\t1\t0\t1\t1\t1\t-\t-\ttext",
        b"1\t1\thook\tdone\t1\t0\t1\t1\t1\tbad\\escape\t-\ttext",
        b"2\t1\thook\tdone\t1\t0\t1\t1\t1\t-\t-\ttext",
        b"total\thook\tdone\tx\t1\t1\t1",
        b"total\thook\tdone",
    ],
)
def test_a_line_of_another_form_is_left_out(tmp_path, line):
    append_run(tmp_path, _run())
    with (tmp_path / hook_runs.NAME).open("ab") as file:
        file.write(line + b"\n")
    append_run(tmp_path, _run())
    found = read_runs(tmp_path)
    assert len(found.last) == 2
    assert [one.runs for one in found.totals] == [2]


def test_nothing_is_written_where_others_may_write(tmp_path):
    tmp_path.chmod(0o777)
    append_run(tmp_path, _run())
    assert list(tmp_path.iterdir()) == []


def test_a_link_in_the_way_is_not_followed(tmp_path):
    target = tmp_path / "target"
    (tmp_path / hook_runs.NAME).symlink_to(target)
    with pytest.raises(OSError, match="symbolic"):
        append_run(tmp_path, _run())
    assert not target.exists()
