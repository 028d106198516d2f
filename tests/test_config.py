"""The configuration file: its settings, and the errors of a wrong one."""

import os

import pytest

from irmapdb import config
from irmapdb.config import HINTS, UNWALKED_FILESYSTEMS, Config, load_config
from irmapdb.errors import ConfigError


@pytest.fixture
def load(tmp_path):
    path = tmp_path / "irmapdb.toml"

    def load(text):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_config(path)

    return load


def test_every_entry_is_taken(load):
    loaded = load(
        """
        [scan]
        paths = ["/srv", "/caf\\u00e9 (deleted)"]
        hints = ["/opt"]
        skip-filesystems = ["cifs", "zonefs"]
        skip-paths = ["/srv/cache/", "/caf\\u00e9"]
        """
    )
    assert loaded == Config(
        scan_paths=(b"/srv", "/café (deleted)".encode()),
        hints=(b"/opt",),
        skip_filesystems=UNWALKED_FILESYSTEMS | {"zonefs"},
        skip_paths=(b"/srv/cache/", "/café".encode()),
    )


@pytest.mark.parametrize("text", ["", "[scan]\n", "# nothing\n"], ids=["empty", "table", "comment"])
def test_missing_settings_have_their_defaults(load, text):
    assert load(text) == Config() == Config((), HINTS, UNWALKED_FILESYSTEMS)
    assert load("[scan]\nhints = []\n").hints == ()


def test_network_and_fuse_filesystems_are_walked_only_by_name(load):
    loaded = load("[scan]\nskip-filesystems = ['ext4']\n")
    refused = ["nfs4", "9p", "autofs", "fuse", "fuse.sshfs", "fuseblk", "ext4"]
    assert [fstype for fstype in refused if loaded.walkable(fstype)] == []
    assert all(loaded.walkable(fstype) for fstype in ("xfs", "btrfs", "tmpfs", "overlay", "proc"))
    assert Config().walkable("ext4")


WRONG = {
    "no TOML": ("[scan\n", "not TOML"),
    "no text": (b"\xff\xfe", "not TOML"),
    "unknown table": ("[scna]\n", "unknown entry scna; did you mean scan?"),
    "unknown entry": ("[scan]\npath = []\n", "unknown entry scan.path; did you mean scan.paths?"),
    "nothing like it": (
        "[scan]\nzzz = 1\n",
        "unknown entry scan.zzz; known: hints, paths, skip-filesystems, skip-paths",
    ),
    "no table": ("scan = 3\n", "scan is not a table; write [scan]"),
    "no list": ("[scan]\npaths = '/srv'\n", "paths is not a list of strings"),
    "no strings": ("[scan]\nhints = ['/a', 1]\n", "hints is not a list of strings"),
    "skipped by number": ("[scan]\nskip-filesystems = [1]\n", "not a list of strings"),
    "relative": ("[scan]\npaths = ['srv']\n", "paths: 'srv' is not absolute"),
    "empty path": ("[scan]\nhints = ['']\n", "hints: '' is not absolute"),
    "no truth": ("[hook]\nstrict = 'yes'\n", "is neither true nor false; write true or false"),
    "no number": ("[retention]\nkeep-runs = 0\n", "is no number to keep; give a whole number"),
    "no span": ("[retention]\nstale-older-than = 'x'\n", "'x' is no span of time: write 45s"),
    "skips all": ("[scan]\nskip-paths = ['/a/..']\n", "skip-paths: '/a/..' is the root; no scan"),
    "skips relative": ("[scan]\nskip-paths = ['srv']\n", "skip-paths: 'srv' is not absolute"),
    "skips one text": ("[scan]\nskip-paths = '/srv'\n", "skip-paths is not a list of strings"),
    "skips NUL": ('[scan]\nskip-paths = ["/a\\u0000b"]\n', "has a NUL byte"),
    "skips nothing": ("[scan]\nskip-paths = ['']\n", "skip-paths: '' is not absolute"),
    "NUL": ('[scan]\npaths = ["/a\\u0000b"]\n', "has a NUL byte"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_named_with_the_wrong_entry(load, tmp_path, case):
    text, message = WRONG[case]
    with pytest.raises(ConfigError) as caught:
        load(text)
    assert message in str(caught.value)
    assert str(caught.value).startswith(os.fspath(tmp_path / "irmapdb.toml"))
    assert "\n" not in str(caught.value)
    assert caught.value.advice or ": write " in str(caught.value), "the next step"


@pytest.mark.parametrize(
    ("environment", "path"),
    [({}, None), ({"IRMAPDB_CONFIG": ""}, None), ({"IRMAPDB_CONFIG": "/a"}, b"/a")],
)
def test_the_environment_names_the_file(environment, path):
    assert config.path_in(environment) == path


def test_the_environment_names_no_file_of_the_work_dir():
    with pytest.raises(ConfigError, match=r"IRMAPDB_CONFIG is 'a\.toml'; give"):
        config.path_in({"IRMAPDB_CONFIG": "a.toml"})


def test_only_the_default_file_may_be_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "DEFAULT_PATH", tmp_path / "default.toml")
    assert load_config() == Config()
    (tmp_path / "default.toml").write_text("[scan]\nhints = ['/x']\n")
    assert load_config().hints == (b"/x",)
    with pytest.raises(ConfigError, match=r"named.toml: no such file; name a TOML file"):
        load_config(tmp_path / "named.toml")
    with pytest.raises(
        ConfigError, match="it is a directory, not a regular file; name a TOML file"
    ):
        load_config(tmp_path)
