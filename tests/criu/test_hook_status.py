"""`irmapdb hook --status`: each finding is provoked, and mended by the command that was printed."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from irmapdb.criu import hook_runs, hook_script, script_faults, usable
from irmapdb.criu.engines import names_hook
from irmapdb.node.criu_annotations import annotated_containers
from irmapdb.node.doctor import examine
from irmapdb.node.service_faults import DoctorOptions
from irmapdb.node.service_lock import ServiceLock
from tests.support.cli import irmapdb
from tests.support.criu_versions import version_of
from tests.support.hook import make_executable
from tests.support.programs import SYSTEM_PATH
from tests.support.terminal import at_terminal
from tests.support.warm import WAIT_S
from tests.support.whole_archive import whole, write

if TYPE_CHECKING:
    from collections.abc import Iterator

    from irmapdb.node.service_faults import Finding

_VENV = Path(sys.executable).parent


class Place:
    """A machine with runc and a CRIU that works, as far as PATH and the options tell."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, rig: Path) -> None:
        self.monkeypatch = monkeypatch
        self.rig = rig
        self.in_process = False
        self.etc = directory / "etc"
        self.script = directory / "bin" / "irmapdb-hook"
        self.run = directory / "run"
        self.config = directory / "irmapdb.toml"
        self.config.write_text(f'[warm]\ndirectory = "{directory}/databases"\n')
        self.programs = directory / "programs"
        self.programs.mkdir()
        self.engine("runc")
        (self.programs / "criu").symlink_to(rig / "criu")
        self.path = f"{self.programs}:{_VENV}:{SYSTEM_PATH}"
        monkeypatch.setenv("PATH", self.path)
        # Without the other engines of this machine.
        real = shutil.which
        monkeypatch.setattr(shutil, "which", lambda name, **_: real(name, path=str(self.programs)))
        self.options = (
            *("--criu-dir", self.etc, "--script", self.script),
            *("--run-dir", self.run, "--config", self.config),
        )

    def without_starts(self, *, real_criu: bool = False) -> None:
        """Leave out the slow parts, which other tests have: `criu check`, the starts of Python."""
        self.in_process = True
        self.monkeypatch.setattr(hook_script, "find_python", lambda: Path(sys.executable))
        self.monkeypatch.setattr("irmapdb.commands.hook._compile", lambda: None)
        self.monkeypatch.setattr(script_faults, "_why_not_started", lambda _command: "")
        if not real_criu:
            self.monkeypatch.setattr(usable, "_run", lambda _program, _word: ("Version: 4.1.1", 0))

    def engine(self, name: str, version: str = "1.2.3") -> None:
        program = self.programs / name
        program.write_text(f"#!/bin/sh\necho {name} version {version}\n")
        program.chmod(0o755)

    def status(self) -> dict[str, Any]:
        done = irmapdb("hook", "--status", "--json", *self.options)
        document = json.loads(done.out)
        assert done.code == (3 if document["findings"] else 0), done.said
        assert document["ok"] == (not document["findings"])
        return document

    def findings(self, about: str) -> list[dict[str, str]]:
        return [one for one in self.status()["findings"] if one["about"] == about]

    def mend(self, about: str) -> str:
        """There is this finding, and its command mends it; returns its text."""
        (finding,) = self.findings(about)
        self.call(finding["command"])
        assert self.findings(about) == []
        return finding["text"]

    def call(self, command: str) -> None:
        """Run it as a shell does."""
        before, _, last = command.rpartition(" && ")
        if self.in_process and last.startswith("irmapdb ") and last.isprintable():
            if before:
                self.call(before)
            assert irmapdb(*shlex.split(last)[1:]).code == 0
            return
        subprocess.run(
            ["/bin/sh", "-ec", command],
            env={**os.environ, "PATH": self.path},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
        )

    def install(self, runtime: str = "runc") -> None:
        assert irmapdb("hook", "--install", runtime, *self.options[:4]).code == 0


@pytest.fixture
def place(tmp_path, monkeypatch, rig) -> Place:
    return Place(tmp_path, monkeypatch, rig)


def test_a_machine_without_the_hook_is_mended_by_one_command(place):
    place.without_starts()
    document = place.status()
    assert [one["about"] for one in document["findings"]] == ["hook-line"]
    assert document["criu"]["works"]
    by_name = {one["name"]: one for one in document["engines"]}
    assert by_name["runc"]["version"] == "1.2.3"
    assert by_name["runc"]["files"] == [f"{place.etc}/default.conf", f"{place.etc}/runc.conf"]
    assert not by_name["runc"]["in_effect"]
    text = place.mend("hook-line")
    assert text == "CRIU does not call the hook under runc: no line in its files"
    document = place.status()
    assert document["findings"] == []
    by_name = {one["name"]: one for one in document["engines"]}
    assert by_name["runc"]["scripts"] == [str(place.script)]
    # The line for `criu dump` by hand can be missing intentionally.
    (note,) = document["notes"]
    place.call(note["command"])
    document = place.status()
    assert document["notes"] == []
    assert all(one["in_effect"] for one in document["engines"])


def test_every_fault_of_the_script_is_mended(place):
    place.install()
    place.without_starts()
    kept = place.script.with_suffix(".kept")
    for harm, expected in (
        (place.script.unlink, "is missing, so every dump fails"),
        (lambda: place.script.chmod(0o644), "is not executable, so every dump fails"),
        (lambda: place.script.chmod(0o777), "users other than root may write to"),
        (lambda: os.chown(place.script, 12345, 12345), "belongs to user 12345"),
        (lambda: place.script.parent.chmod(0o777), "users other than root may write to"),
        (
            lambda: place.script.write_bytes(place.script.read_bytes() + b"exit 1\n"),
            "was changed, or another version of irmapdb wrote it",
        ),
        (lambda: place.script.write_bytes(b""), "is no script of `irmapdb hook --install`"),
        (
            lambda: (place.script.rename(kept), place.script.mkdir()),
            "is no regular file, so every dump fails",
        ),
    ):
        harm()
        assert expected in place.mend("script")


def test_a_program_that_is_gone_or_broken_is_mended(place, tmp_path):
    place.install()
    good = place.script.read_bytes()
    head, _, rest = good.partition(b"\nprogram=")
    program = tmp_path / "broken"
    for expected in (
        "is missing, so irmapdb does not run before a dump",
        "ended with exit code 7: no module",
    ):
        line = b"\nprogram='%b'\n" % os.fsencode(program)
        place.script.write_bytes(head + line + rest.partition(b"\n")[2])
        assert expected in place.mend("script")
        program.write_text("#!/bin/sh\necho no module >&2; exit 7\n")
        program.chmod(0o755)
    assert place.script.read_bytes() == good


def test_a_python_that_finds_no_module_is_found(place, tmp_path):
    place.install()
    packages = tmp_path / "packages"
    (packages / "irmapdb/criu").mkdir(parents=True)
    (packages / "irmapdb/criu/hook.py").touch()
    text = place.script.read_bytes()
    head, _, rest = text.partition(b"\npackages=")
    line = b"\npackages='%b'\n" % os.fsencode(packages)
    place.script.write_bytes(head + line + rest.partition(b"\n")[2])
    (finding,) = place.findings("script")
    assert "No module named 'irmapdb.criu.hook_job'" in finding["text"]


def test_a_program_that_another_user_may_change_is_noted(place, tmp_path):
    place.install()
    place.without_starts()
    directory = tmp_path / "theirs"
    directory.mkdir()
    program = make_executable(directory)
    text = place.script.read_bytes()
    head, _, rest = text.partition(b"\nprogram=")
    line = b"\nprogram='%b'\n" % os.fsencode(program)
    place.script.write_bytes(head + line + rest.partition(b"\n")[2])
    before = place.status()["notes"]
    os.chown(directory, 12345, 0)
    (note,) = (one for one in place.status()["notes"] if one not in before)
    assert note["text"] == f"{directory} belongs to user 12345, and must belong to root"
    place.call(note["command"])
    assert place.status()["notes"] == before


def test_a_script_of_another_user_is_not_started(place, tmp_path):
    place.install()
    started = tmp_path / "started"
    place.script.write_text(f"#!/bin/sh\n# irmapdb-hook: CRIU executes this file\n: >{started}\n")
    os.chown(place.script, 12345, 0)
    assert place.findings("script")
    assert not started.exists()


def test_files_that_others_may_change_are_mended(place, tmp_path):
    place.install()
    place.without_starts()
    paths = [place.run, tmp_path / "databases", place.etc, place.etc / "runc.conf"]
    for path in paths[:2]:
        path.mkdir(mode=0o700)
    for harm in (lambda path: path.chmod(0o777), lambda path: os.chown(path, 12345, 0)):
        for path in paths:
            harm(path)
        found = place.findings("rights")
        assert [any(str(path) in one["text"] for one in found) for path in paths] == [True] * 4
        for one in found:
            place.call(one["command"])
        assert place.status()["ok"]


def test_a_configuration_that_cannot_be_read_is_mended(place):
    place.install()
    place.without_starts()
    place.config.write_text("[hook\n")
    assert "not TOML" in place.mend("config")
    place.config.unlink()
    assert "no such file" in place.mend("config")
    (place.etc / "runc.conf").unlink()
    (place.etc / "runc.conf").mkdir()
    text = {one["text"] for one in place.findings("hook-line")}
    assert any("not a regular file" in one for one in text)
    for _ in range(2):  # it is moved away, and then written
        for finding in place.findings("hook-line")[:1]:
            place.call(finding["command"])
    assert place.status()["ok"]


def test_a_crun_that_reads_no_file_is_mended(place):
    place.without_starts()
    (place.programs / "runc").unlink()
    place.engine("crun")
    assert "too old to read a configuration file of CRIU" in place.mend("crun")
    document = place.status()
    (crun,) = (one for one in document["engines"] if one["name"] == "crun")
    assert crun["in_effect"]
    assert crun["scripts"] == [str(place.script)]


def test_a_criu_that_is_missing_or_does_not_work_is_mended(place, rig):
    place.install()
    place.without_starts(real_criu=True)
    good = place.programs / "criu"
    # In place of the package manager of this machine.
    offer = place.programs / "apt-cache"
    offer.write_text("#!/bin/sh\necho '  Candidate: 4.1.1-1'\n")
    offer.chmod(0o755)
    installer = place.programs / "apt-get"
    installer.write_text(f'#!/bin/sh\n[ "$*" = "install criu" ] && ln -sf {rig}/criu {good}\n')
    installer.chmod(0o755)
    good.unlink()
    assert "no criu is on PATH" in place.mend("criu")
    good.unlink()
    good.write_text(
        "#!/bin/sh\n"
        '[ "$1" = check ] || { echo "Version: 3.17.1"; exit 0; }\n'
        'echo "Error (criu/x.c:1): no such system call" >&2; exit 1\n'
    )
    good.chmod(0o755)
    text = place.mend("criu")
    good.unlink()
    good.write_text("#!/bin/sh\n[ $1 = --version ] || exec sleep 1000\n")
    good.chmod(0o755)
    with place.monkeypatch.context() as patched:
        patched.setattr(usable, "_PATIENCE_S", 0.2)
        (finding,) = place.findings("criu")
        assert "`criu check` did not end in 0.2 s" in finding["text"]
    place.call(finding["command"])
    assert "3.17.1 does not work on this kernel: Error (criu/x.c:1): no such system call" in text
    assert place.status()["criu"]["works"]


def _old_criu() -> Path:
    """A package of this machine that does not work on this kernel: Debian 12's 3.17.1."""
    program = Path("/usr/sbin/criu")
    if not program.exists():
        pytest.skip("no package of CRIU is installed")
    if subprocess.run([program, "check"], capture_output=True, check=False).returncode == 0:
        pytest.skip("the CRIU of this machine works")
    return program


def test_a_criu_that_does_not_work_is_named_with_a_next_step_that_helps(place, tmp_path):
    place.install()
    place.without_starts(real_criu=True)
    good = place.programs / "criu"
    good.unlink()
    good.symlink_to(_old_criu())
    for program in ("apt-get", "apt-cache"):
        (place.programs / program).symlink_to(f"/usr/bin/{program}")
    policy = subprocess.run(
        ["apt-cache", "policy", "criu"], capture_output=True, text=True, check=True
    ).stdout
    offered = re.search(r"Candidate: (\d+)\.(\d+)", policy)
    is_new = offered is not None and tuple(map(int, offered.groups())) >= (4, 1)
    (finding,) = place.findings("criu")
    assert f"{good} 3." in finding["text"]
    assert (finding["command"] == "apt-get install criu") == is_new
    assert is_new or "install CRIU 4.1.1 or newer: Debian 13 has it" in finding["command"]

    # The trial, and every form of check, name it too.
    tried = irmapdb("hook", "--try", *place.options[:4])
    assert tried.code == 1
    assert "does not work on this kernel: Error" in tried.err
    assert finding["command"] in tried.err
    archive = write(tmp_path / "a.tar", whole("podman"), "tar")
    forms = (["-t", str(os.getpid()), "-D", tmp_path], ["--all"], ["--images", archive])
    with place.monkeypatch.context() as patched:
        # check starts the `criu` on PATH.
        patched.setenv("PATH", f"{place.programs}:{SYSTEM_PATH}")
        for words in forms:
            (note,) = (
                one
                for one in json.loads(irmapdb("check", *words, "--json").out)["notes"]
                if "does not work" in one
            )
            assert note.endswith(finding["command"])
            assert f"note: {note}" in " ".join(irmapdb("check", *words).out.split("\n"))
        good.unlink()
        good.symlink_to(place.rig / "criu")
        for words in forms:
            assert "does not work" not in irmapdb("check", *words).out


def test_the_steps_for_debian_12_give_a_criu_that_works(tmp_path):
    text = (Path(__file__).parents[2] / "docs/criu.md").read_text()
    (steps,) = re.findall(r"```sh\n(top=/opt/criu\n.*?)```", text, re.DOTALL)
    if "bookworm" not in Path("/etc/os-release").read_text() or os.uname().machine != "x86_64":
        pytest.skip("this is not Debian 12 on x86-64")
    (tmp_path / "sbin").mkdir()
    steps = steps.replace("/opt/criu", f"{tmp_path}/opt")
    steps = steps.replace("/usr/local/sbin", f"{tmp_path}/sbin")
    done = subprocess.run(["sh", "-ec", steps], capture_output=True, text=True, check=False)
    assert "Looks good." in done.stdout, done.stderr
    assert version_of(tmp_path / "sbin/criu") == "4.1"


@contextmanager
def _service(place: Place) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "irmapdb", "warm", "--cgroup", "/absent*"]
    options = ["--run-dir", place.run, "--config", place.config]
    with subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL) as process:
        try:
            until = time.monotonic() + WAIT_S
            while not (place.run / "warm.pid").exists():
                assert time.monotonic() < until
                assert process.poll() is None
                time.sleep(0.02)
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            # The one that a printed command has started.
            if (pid := ServiceLock(place.run).running()) not in {None, process.pid}:
                os.kill(pid, signal.SIGTERM)


def _pid(place: Place) -> int:
    return int((place.run / "warm.pid").read_text().split()[0])


def _wait_for(place, is_so):
    """The service in the status, as soon as that is so: a busy machine takes its time."""
    until = time.monotonic() + WAIT_S
    while not is_so(service := place.status()["service"]):
        assert time.monotonic() < until, service
    return service


def test_a_service_that_does_not_answer_is_mended(place):
    place.install()
    place.without_starts()
    with _service(place) as process:
        service = _wait_for(place, lambda service: service["replied_s"] is not None)
        assert service["pid"] == process.pid
        process.send_signal(signal.SIGSTOP)
        assert "it is stopped" in place.mend("service")
        _wait_for(place, lambda service: service["replied_s"] is not None)
        process.kill()
        process.wait()
        (finding,) = place.findings("service")
        assert "the service was killed" in finding["text"]
        place.call(finding["command"])  # in the background
        _wait_for(place, lambda service: service["replied_s"] is not None)
        assert place.status()["ok"]
        os.kill(_pid(place), signal.SIGTERM)
    _wait_for(place, lambda service: service["pid"] is None)
    assert place.status()["ok"]


def test_a_failed_run_is_shown_until_one_passes(place, tmp_path):
    # The tests have a /run of their own.
    place.run = Path("/run/irmapdb")
    place.options = (*place.options[:4], "--run-dir", place.run, *place.options[6:])
    (place.run / hook_runs.NAME).unlink(missing_ok=True)
    place.install()
    place.without_starts()
    place.in_process = False
    assert place.status()["runs"] == []
    os.utime(place.script, (1, 1))
    broken = tmp_path / "broken-hook"
    broken.write_bytes(place.script.read_bytes().replace(b"\nprogram='", b"\nprogram='/absent"))
    broken.chmod(0o755)
    environment = {"CRTOOLS_SCRIPT_ACTION": "pre-dump", "CRTOOLS_INIT_PID": "4194305"}
    subprocess.run([broken], cwd=tmp_path, env=environment, capture_output=True, check=True)
    document = place.status()
    (run,) = document["runs"]
    assert (run["by"], run["outcome"], run["pid"]) == ("script", "failed", 4194305)
    assert "is missing" in run["text"]
    assert abs(run["at"] - time.time()) < 60
    assert place.mend("last-run") == f"the last run of the hook failed: {run['text']}"
    assert place.status()["runs"][-1]["outcome"] == "done"


@pytest.mark.parametrize("engine", ["runc", "crun", "containerd", "podman"])
def test_a_container_with_a_file_of_its_own_is_found(place, tmp_path, engine):
    place.install()
    place.without_starts()
    root = tmp_path / "root"
    file = place.etc / "special.conf"
    file.write_text("tcp-established\n")
    bundle = (
        root
        / {
            "runc": "bundle",
            "crun": "run/crun/web",
            "containerd": "run/containerd/io.containerd.runtime.v2.task/k8s.io/web",
            "podman": "var/lib/containers/storage/overlay-containers/web/userdata",
        }[engine]
    )
    bundle.mkdir(parents=True)
    value = {"org.criu.config": str(file)}
    (bundle / "config.json").write_text(json.dumps({"annotations": value}))
    state = root / "run" / engine / "web"
    if engine == "runc":
        state.mkdir(parents=True)
        labels = {"config": {"labels": [f"org.criu.config={file}", f"bundle={bundle}"]}}
        (state / "state.json").write_text(json.dumps(labels))
    (bundle.parent / "half").mkdir()
    (bundle.parent / "half" / "config.json").write_text('{"annotations": {"org.criu')
    (found,) = annotated_containers(root)
    assert found == ("web", str(file))
    options = DoctorOptions(place.etc, place.script, place.run, place.config, root=root)
    (finding,) = _annotations(options)
    assert finding.text == f"container web: its org.criu.config, {file}, does not name the hook"
    place.call(finding.command)
    assert file.read_text().splitlines()[-1] == f"action-script {place.script}"
    assert _annotations(options) == []


def _annotations(options: DoctorOptions) -> list[Finding]:
    return [one for one in examine(options).findings if one.about == "annotation"]


@pytest.mark.parametrize("value", ["/a\0b", "\0", "\ud800", "/" + "a" * 5000])
def test_an_annotation_that_is_no_path_hides_nothing(place, tmp_path, value):
    """One container must not end the look at all others."""
    place.install()
    place.without_starts()
    bundle = tmp_path / "root/run/containerd/io.containerd.runtime.v2.task/k8s.io/web"
    bundle.mkdir(parents=True)
    document = {"annotations": {"org.criu.config": value}}
    (bundle / "config.json").write_text(json.dumps(document))
    root = tmp_path / "root"
    options = DoctorOptions(place.etc, place.script, place.run, place.config, root=root)
    (finding,) = _annotations(options)
    assert finding.text.isprintable()
    assert len(finding.text) < 500
    (found,) = annotated_containers(root)
    assert not names_hook(root / found.file.lstrip("/"))


@pytest.mark.parametrize("value", ["", "/srv/tenant/file", "/etc/criu/\n; reboot #"])
def test_root_writes_to_no_file_that_a_container_chose(place, tmp_path, value):
    place.install()
    place.without_starts()
    state = tmp_path / "root/run/runc/web"
    state.mkdir(parents=True)
    labels = {"config": {"labels": [f"org.criu.config={value}"]}}
    (state / "state.json").write_text(json.dumps(labels))
    options = DoctorOptions(
        place.etc, place.script, place.run, place.config, root=tmp_path / "root"
    )
    (finding,) = _annotations(options)
    assert finding.text.isprintable()
    assert ">>" not in finding.command
    place.call(finding.command)
    # With an empty annotation, CRIU still reads its own default.conf.
    assert _annotations(options) == ([] if value == "" else [finding])


def test_the_output_fits_a_terminal_and_is_printable(place, tmp_path):
    place.install()
    place.run.mkdir(mode=0o700)
    run = hook_runs.HookRun(
        *(time.time(), "hook", "failed", 0.1, True, 1, 0, 7),
        *("caf\udce9\x1b[2J", b"/w\n\x1b", "a long text " * 30),
    )
    hook_runs.append_run(place.run, run)
    environment = {"COLUMNS": "80", "NO_COLOR": "1", "PATH": place.path}
    code, said = at_terminal(
        "hook", "--status", *place.options, cwd=tmp_path, environment=environment
    )
    assert code == 3
    assert b"\x1b" not in said
    lines = said.decode().splitlines()
    commands = [line for line in lines if line.startswith("    irmapdb ")]
    assert all(len(line) <= 80 for line in lines if line not in commands)


def test_it_needs_root_and_one_wish(place):
    done = irmapdb("hook", "--status", "--try")
    assert done.code == 2
    assert "do not go together" in done.err
    assert DoctorOptions().script == Path("/usr/local/libexec/irmapdb/irmapdb-hook")
    assert script_faults.write_fault(Path("/")) is None
