"""The configuration: what is given arrives, and each mistake has its line."""

from __future__ import annotations

import copy
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from blobark.config import Config, Login, Secret, SourceRoot, connection_fault, load
from blobark.errors import ConfigError
from blobark.retention import Keep

SHIPPED = Path(__file__).resolve().parent.parent / "config.yaml"
KEY = "AccountName=acc;AccountKey=c2VjcmV0"
PING = "https://hc.example.com/1b2c-secret"
NO_ENVIRONMENT: Mapping[str, str] = {}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test runs in a folder of its own, where its config.yaml lies."""
    folder = tmp_path.resolve() / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def given_text(text: str, environ: Mapping[str, str] = NO_ENVIRONMENT, **overrides: object) -> Config:
    Path("config.yaml").write_text(text)
    return load(None, environ=environ, overrides=overrides)


def login_of(text: str, environ: Mapping[str, str] = NO_ENVIRONMENT) -> Login:
    login = given_text(text, environ).login
    assert login is not None
    return login


def mistakes(text: str, environ: Mapping[str, str] = NO_ENVIRONMENT, **overrides: object) -> list[str]:
    with pytest.raises(ConfigError) as raised:
        given_text(text, environ, **overrides)
    return raised.value.message.splitlines()


# What is given


def test_the_shipped_file_is_valid_and_shows_the_defaults(tmp_path: Path) -> None:
    shipped = load(SHIPPED, environ={})
    (tmp_path / "least.yaml").write_text("source_path: docs\nrestore_root: blobark-data/restored\n")
    least = load(tmp_path / "least.yaml", environ={})
    for name in Config.__struct_fields__:
        theirs, ours = getattr(shipped, name), getattr(least, name)
        if isinstance(theirs, Path) and name != "file":
            theirs, ours = theirs.relative_to(SHIPPED.parent), ours.relative_to(tmp_path)
        if not isinstance(theirs, Secret) and name not in ("file", "source_path"):
            assert theirs == ours, name
    assert shipped.source_path == (SourceRoot(SHIPPED.parent / "docs", os.fsencode(SHIPPED.parent / "docs")),)
    assert shipped.source_path[0].path.is_dir()


def test_what_is_to_be_kept(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("source_path: a\nkeep: {last: 3, hourly: 24, daily: 14, weekly: 8, within: 30d, tags: [x, y-1]}\n")
    rules = Keep(last=3, hourly=24, daily=14, weekly=8, within_s=30 * 86_400, tags=("x", "y-1"))
    assert load(file, environ={}).keep == rules
    file.write_text("source_path: a\nkeep:\n  monthly: 12\n  yearly: 5\n  tags: forever\n")
    assert load(file, environ={}).keep == Keep(monthly=12, yearly=5, tags=("forever",))
    file.write_text("source_path: a\n")
    assert load(file, environ={}).keep is None


def test_the_shipped_file_holds_every_key_with_its_default(tmp_path: Path) -> None:
    text = re.sub(r"^# (\w+: )", r"\1", SHIPPED.read_text(), flags=re.MULTILINE)
    file = tmp_path / "config.yaml"
    file.write_text(text)
    config = load(file, environ={"MY_CONNECTION_STRING": KEY, "MY_KEY": "a2V5", "MY_SAS": "sig=x", "MY_PING_URL": PING})
    assert config.skip_files == ("*.tmp", "~$*", "Thumbs.db")
    assert config.server == "web1"
    keys = set(yaml.safe_load(text))
    fields = {
        re.sub("^(max_memory|pack_below)_bytes$|^(timeout|metrics_interval|max_age)_s$", r"\1\2", name)
        for name in Config.__struct_fields__
    }
    assert keys == fields - {"file", "login", "warnings", "part_bytes"} | {"part_size"}


def test_every_key_arrives(here: Path) -> None:
    config = given_text("""
source_path: [/srv/a, {path: /mnt/snap/data/, as: /data}, "b c"]
guid_mapping_file: maps/map.json
skip_files: ["*.tmp", Thumbs.db]
skip_path: [/data/cache/, logs]
exclude:
  - "*.pyc"
  - "!keep"
restore_root: /restore
max_workers: 8
max_memory: 1.5 GiB
metrics_log_file: m.json
save_metrics_log_file: s.json
metrics_interval: 0.5s
metrics_textfile: node/b.prom
ping_url: https://hc.example.com/1b2c-secret
connection_string: AccountName=acc;AccountKey=c2VjcmV0
container_name: backups
store: azure
state_dir: /var/lib/blobark
server: web1.example-2
one_file_system: yes
change_detection: no-inode
upload_check: none
""")
    assert config.source_path == (
        SourceRoot(Path("/srv/a"), b"/srv/a"),
        SourceRoot(Path("/mnt/snap/data"), b"/data"),
        SourceRoot(here / "b c", os.fsencode(here / "b c")),
    )
    assert config.guid_mapping_file == here / "maps/map.json"
    assert config.skip_files == ("*.tmp", "Thumbs.db")
    assert config.skip_path == ("/data/cache/", "logs")
    assert config.exclude == ("*.pyc", "!keep")
    assert config.restore_root == Path("/restore")
    assert config.max_workers == 8
    assert config.max_memory_bytes == 3 << 29
    assert config.metrics_log_file == here / "m.json"
    assert config.save_metrics_log_file == here / "s.json"
    assert config.metrics_interval_s == 0.5
    assert config.metrics_textfile == here / "node/b.prom"
    assert config.ping_url.reveal() == PING
    assert PING not in repr(config)
    assert config.connection_string.reveal() == KEY
    assert config.container_name == "backups"
    assert config.store == "azure"
    assert config.state_dir == Path("/var/lib/blobark")
    assert config.server == "web1.example-2"
    assert config.one_file_system is True
    assert config.change_detection == "no-inode"
    assert config.upload_check == "none"


def test_a_file_of_nothing_but_a_key_has_the_defaults(here: Path) -> None:
    config = given_text("server: null\nexclude:\nskip_files: []\nmax_workers: ''\n")
    assert config.source_path == ()
    assert config.skip_files == config.skip_path == config.exclude == config.warnings == ()
    assert config.store == here / "blobark-data/store"
    assert (config.server, config.restore_root, config.max_workers, config.container_name) == (None, None, None, None)
    assert config.max_memory_bytes == 256 << 20
    assert config.upload_check == "full"
    assert not config.connection_string


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("64MiB", 64 << 20),
        ("64mib", 64 << 20),
        ("64M", 64 << 20),
        ("64 MB", 64 * 10**6),
        ("1GB", 10**9),
        ("1g", 1 << 30),
        ("16777216", 1 << 24),
        ("20000000B", 20_000_000),
        ("1TiB", 1 << 40),
        ("0.5GiB", 1 << 29),
        ("200000KB", 2 * 10**8),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert given_text(f"max_memory: {text}").max_memory_bytes == size_bytes


def test_yaml_does_not_decide_what_a_text_is() -> None:
    config = given_text("server: 010\ncontainer_name: 2024-01-01\nskip_files: [no, 1e3, ~x, 'null']\nexclude: on")
    assert config.server == "010"
    assert config.container_name == "2024-01-01"
    assert config.skip_files == ("no", "1e3", "~x", "null")
    assert config.exclude == ("on",)


def test_home(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    config = given_text("source_path: ~/docs\nskip_path: [~/docs/tmp, a~]\nstate_dir: ./~/x")
    assert config.source_path[0].path == Path("/home/ann/docs")
    assert config.skip_path == ("/home/ann/docs/tmp", "a~")
    assert config.state_dir == here / "~/x"


def test_anchors_and_a_byte_order_mark_are_yaml_too() -> None:
    config = given_text("\ufeffskip_files: &names [a]\nexclude: *names\n")
    assert config.skip_files == config.exclude == ("a",)


# Where it comes from


def test_the_current_folder_goes_first_then_the_scripts_folder(here: Path, tmp_path: Path) -> None:
    scripts = tmp_path / "scripts"
    scripts.mkdir()
    with pytest.raises(ConfigError, match=r"^config.yaml: there is none in this folder or in .*scripts: name one"):
        load(None, environ={}, default_dir=scripts)
    (scripts / "config.yaml").write_text("server: theirs\nstate_dir: s")
    config = load(None, environ={}, default_dir=scripts)
    assert (config.server, config.state_dir) == ("theirs", scripts / "s")
    assert given_text("server: ours").server == "ours"
    assert load(scripts / "config.yaml", environ={}).server == "theirs"


def test_relative_paths_start_from_the_file_and_from_the_command_lines_folder(here: Path, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/b.yaml").write_text("source_path: a\nrestore_root: r\nstore: ../s")
    config = load(Path("../etc/b.yaml"), environ={}, overrides={"restore_root": Path("r"), "source_path": None})
    etc = tmp_path.resolve() / "etc"
    assert config.source_path[0].path == etc / "a"
    assert config.store == etc.parent / "s"
    assert config.restore_root == here / "r"


def test_the_command_line_wins() -> None:
    text = "max_workers: 3\nserver: a\nsource_path: /a\none_file_system: true\n"
    config = given_text(text, max_workers=9, server=None, source_path=["/b", "/c"], one_file_system=False)
    assert (config.max_workers, config.server, config.one_file_system) == (9, "a", False)
    assert [root.name for root in config.source_path] == [b"/b", b"/c"]
    assert given_text(text, source_path="/${X}").source_path[0].name == b"/${X}"


def test_a_mistake_of_the_command_line_names_the_option() -> None:
    expected = ["--max-workers: expected a whole number from 1 to 512 or auto, got '0'"]
    assert mistakes("server: a", max_workers=0) == expected
    with pytest.raises(TypeError):
        given_text("server: a", workers=3)


# Variables


def test_variables() -> None:
    environ = {"A": "x", "EMPTY": "", "N": "8"}
    config = given_text(
        """
skip_files: ["${A}", "-${A}${A}-", "${MISSING:-d e}", "${EMPTY:-d}", "${MISSING:-}x", "$${A}", "a$b$", $A, "$$$$"]
max_workers: ${N:-3}
max_memory: ${M:-64}MiB
server: ${EMPTY}
source_path: {path: "/${A}", as: "/${B:-b}"}
""",
        environ,
    )
    assert config.skip_files == ("x", "-xx-", "d e", "d", "x", "${A}", "a$b$", "$A", "$$")
    assert (config.max_workers, config.max_memory_bytes, config.server) == (8, 64 << 20, None)
    assert config.source_path == (SourceRoot(Path("/x"), b"/b"),)


@given(value=st.text(st.characters(exclude_characters="\0/"), min_size=1))
@settings(max_examples=50, deadline=None)
def test_no_value_of_a_variable_is_taken_for_yaml(tmp_path_factory: pytest.TempPathFactory, value: str) -> None:
    file = tmp_path_factory.getbasetemp() / "variable.yaml"
    file.write_text("skip_files: ['${V}', \"${V}\"]\nexclude: x\n")
    assert load(file, environ={"V": value}).skip_files == (value, value)


def test_variables_that_are_wrong() -> None:
    assert mistakes('server: "${A}"\nstore: ${B}/${C}\nstate_dir: ${1x}\nskip_files: [a, "${", "${D}"]\nserver: x') == [
        "config.yaml:1: server: the environment variable A is not set",
        "config.yaml:2: store: the environment variable B is not set",
        "config.yaml:2: store: the environment variable C is not set",
        "config.yaml:3: state_dir: expected ${NAME} or ${NAME:-default} ($$ is a plain $)",
        "config.yaml:4: skip_files: expected ${NAME} or ${NAME:-default} ($$ is a plain $)",
        "config.yaml:4: skip_files: the environment variable D is not set",
        "config.yaml:5: server: given twice, first in line 1",
    ]


# Mistakes

APART = "expected another folder than that of store, and neither inside the other"
PATHS = "expected a path, absolute or relative to each source_path, without .., got"
MISTAKES = {
    "max_workerz: 8": "1: max_workerz: unknown key, did you mean max_workers?",
    "# a\n\nmax_workers: many": "3: max_workers: expected a whole number from 1 to 512 or auto, got 'many'",
    "max_workers: 513": "1: max_workers: expected a whole number from 1 to 512 or auto, got '513'",
    "max_workers: 1.0": "1: max_workers: expected a whole number from 1 to 512 or auto, got '1.0'",
    "max_workers: -1": "1: max_workers: expected a whole number from 1 to 512 or auto, got '-1'",
    "max_workers: [8]": "1: max_workers: expected a plain value",
    "max_workers:\n  a: 1": "2: max_workers: expected a plain value",
    "max_memory: 1 cup": "1: max_memory: expected a size such as 256MiB or 1GB, got '1 cup'",
    "max_memory: 64iB": "1: max_memory: expected a size such as 256MiB or 1GB, got '64iB'",
    "max_memory: 64": "1: max_memory: expected at least 16MiB, got '64'",
    "one_file_system: 1": "1: one_file_system: expected true or false, got '1'",
    "upload_check: some": "1: upload_check: expected full or none, got 'some'",
    "change_detection: Strict": "1: change_detection: expected strict, no-inode, mtime or digest, got 'Strict'",
    "server: my_server": "1: server: expected up to 63 of a-z, 0-9, . and -, beginning with a letter or a digit, "
    "got 'my_server'",
    "container_name: A": "1: container_name: expected 3 to 63 of a-z, 0-9 and single -, got 'A'",
    "container_name: a--b": "1: container_name: expected 3 to 63 of a-z, 0-9 and single -, got 'a--b'",
    "store: s3://bucket": "1: store: expected a folder, or azure, got 's3://bucket'",
    'state_dir: "a\\0b"': "1: state_dir: expected a path, got 'a\\x00b'",
    "state_dir: ~nobody-here/x": "1: state_dir: expected a path: there is no such user here (./~ is a name), "
    "got '~nobody-here/x'",
    "skip_files: [a/b]": "1: skip_files: expected a file name or a glob of one, without / "
    "(skip_path and exclude take paths), got 'a/b'",
    "skip_files:\n- a\n-\n": "3: skip_files: expected a plain value",
    "skip_files: [[a]]": "1: skip_files: nested too deeply",
    "skip_files: [{a: b}]": "1: skip_files: expected a plain value",
    "skip_path: [a/../b]": f"1: skip_path: {PATHS} 'a/../b'",
    "skip_path: /": f"1: skip_path: {PATHS} '/'",
    "skip_path: a/**/b": "1: skip_path: expected a path without ** (exclude takes it), got 'a/**/b'",
    'exclude: ["a\\nb"]': "1: exclude: expected one gitignore pattern, got 'a\\nb'",
    "source_path: [{path: /a, to: /b}]": "1: source_path: expected a path, or {path: where to read, as: its real name}",
    "source_path: [{as: /b}]": "1: source_path: expected a path, or {path: where to read, as: its real name}",
    "source_path: [{path: [/a], as: /b}]": "1: source_path: nested too deeply",
    "source_path: [{path: /a, as: b}]": "1: source_path: expected `as` to be an absolute path, got 'b'",
    "source_path: [/a, /b, /a/]": "1: source_path: /a is there twice",
    "source_path: [/a, {path: /b, as: /a}]": "1: source_path: /a is there twice",
    "source_path:\n- /a/b/c\n- /a": "2: source_path: /a/b/c lies inside /a",
    "source_path: [/a, /ab, /]": "1: source_path: /a lies inside /\nconfig.yaml:1: source_path: /ab lies inside /",
    "source_path: [/x, {path: /x/y, as: /a}]": "1: source_path: /a lies inside /x",
    "source_path: [/x, {path: /a, as: /x/y}]": "1: source_path: /x/y lies inside /x",
    "source_path: /a\nrestore_root: /a/b": "2: restore_root: lies inside source_path /a: move it, or name it in "
    "skip_path as well",
    "source_path: /a/b\nstore: /a": "1: source_path: lies inside store (/a)",
    "source_path: /a\nstate_dir: /a": "1: source_path: lies inside state_dir (/a)",
    "store: /a\nrestore_root: /a/b": "2: restore_root: lies inside store (/a)",
    "store: /a\nstate_dir: /a/b": f"2: state_dir: {APART}",
    "store: /a/b\nstate_dir: /a": f"2: state_dir: {APART}",
    "guid_mapping_file: a\nmetrics_log_file: ./a": "2: metrics_log_file: expected another file than guid_mapping_file",
    "metrics_log_file: a\nlog_file: ./a": "2: log_file: expected another file than metrics_log_file",
    "max_age: 0h": "1: max_age: expected a time such as 26h, 90m, 7d or 2w, got '0h'",
    "max_age: 26": "1: max_age: expected a time such as 26h, 90m, 7d or 2w, got '26'",
    "keep: 7": "1: keep: expected rules such as {last: 3, daily: 14, monthly: 12}, got '7'",
    "keep: {}": "1: keep: expected one or more of last, hourly, daily, weekly, monthly, yearly, within, tags",
    "keep: {dayly: 7}": "1: keep: dayly is no rule, did you mean daily?",
    "keep: {last: 1, forever: 7}": "1: keep: forever is no rule, expected one of daily, hourly, last, monthly, tags, "
    "weekly, within, yearly",
    "keep: {last: 1, daily: 7, last: 30}": "1: keep: last is given twice, first in line 1",
    "keep:\n  within: 30d\n  within: 1d": "3: keep: within is given twice, first in line 2",
    "keep: {daily: 0}": "1: keep: expected daily to be a whole number of 1 or more",
    "keep: {daily: [1]}": "1: keep: expected daily to be a whole number of 1 or more",
    "keep: {within: 3}": "1: keep: expected within to be a time such as 48h, 30d or 8w",
    "keep: {tags: [a b]}": "1: keep: expected tags to be one or more names of a-z, 0-9, ., _ and -",
    "keep: {tags: [[a]]}": "1: keep: nested too deeply\nconfig.yaml:1: keep: expected tags to be one or more names of "
    "a-z, 0-9, ., _ and -",
    "hook_before: ' '": "1: hook_before: expected a command for /bin/sh",
    "metrics_log_file: a\nsave_metrics_log_file: ./a": "2: save_metrics_log_file: expected another file than "
    "metrics_log_file",
    "metrics_textfile: a\nguid_mapping_file: a": "1: metrics_textfile: expected another file than guid_mapping_file",
    "ping_url: ftp://x/y": "1: ping_url: expected an address such as https://hc-ping.com/<uuid>",
    "ping_url: https:///y": "1: ping_url: expected an address such as https://hc-ping.com/<uuid>",
    "ping_url: hc-ping.com/x": "1: ping_url: expected an address such as https://hc-ping.com/<uuid>",
    "ping_url: 'https://x/y z'": "1: ping_url: expected an address such as https://hc-ping.com/<uuid>",
    "ping_url: 'https://x:y/z'": "1: ping_url: expected an address such as https://hc-ping.com/<uuid>",
    "metrics_interval: 10ms": "1: metrics_interval: expected a time from 0.1s to 1m, such as 1s, got '10ms'",
    "metrics_interval: 2m": "1: metrics_interval: expected a time from 0.1s to 1m, such as 1s, got '2m'",
    "store: azure\nconnection_string: AccountName=a": " container_name: not set, and store: azure needs it",
    "store: azure\ncontainer_name: abc": " connection_string: not set, and store: azure needs it "
    "(or AZURE_STORAGE_CONNECTION_STRING, or account_name with a key, a SAS or Entra ID)",
    "": " is empty",
    "# nothing\n": " is empty",
    "a\n": "1: expected lines of the form `key: value`",
    "\n- a\n": "2: expected lines of the form `key: value`",
    "a: b: c": "1: not YAML: mapping values are not allowed here",
    "server: 'a": "1: not YAML: found unexpected end of stream",
    "skip_files:\n\t- a": "2: not YAML: found character '\\t' that cannot start any token",
    "server: a\nserver2: \x01": "2: not YAML: a control character",
    "server: *there": "1: not YAML: found undefined alias 'there'",
    "server: a\n---\nserver: b": "2: not YAML: but found another document",
    "server: a\nserver: b": "2: server: given twice, first in line 1",
    "server: !!python/object/apply:os.getcwd []": "1: server: YAML tags are not taken here",
    "skip_files: [!x a]": "1: skip_files: YAML tags are not taken here",
    "skip_files: &a [*a]": "1: skip_files: nested too deeply",
    "[" * 100_000: " not a configuration: nested too deeply",
    "#" * (2 << 20): " longer than 1 MiB, this is no configuration",
}


@pytest.mark.parametrize("text", MISTAKES, ids=range(len(MISTAKES)))
def test_each_mistake_has_its_line(text: str) -> None:
    assert "\n".join(mistakes(text)) == f"config.yaml:{MISTAKES[text]}"


def test_all_mistakes_come_at_once_in_the_order_of_the_file() -> None:
    text = "".join(
        f"{text}\n" for text in ("max_workers: x", "exclud: a", "server: ''", "store: azure", "max_memory: y")
    )
    lines = mistakes(text)
    places = ["config.yaml: ", "config.yaml: ", "config.yaml:1: ", "config.yaml:2: ", "config.yaml:5: "]
    assert [line[: len(place)] for line, place in zip(lines, places, strict=True)] == places


def test_an_unknown_key_that_is_like_no_other_gets_the_list() -> None:
    (line,) = mistakes("zzz: 1\n")
    assert line.startswith(
        "config.yaml:1: zzz: unknown key, expected one of access_tier, account_key, account_name, auth, "
    )
    assert mistakes("'AccountKey=x;y': 1\n")[0].startswith("config.yaml:1: unknown key")


def test_files_that_cannot_be_read(here: Path) -> None:
    with pytest.raises(ConfigError, match=r"^other.yaml: cannot be read \(No such file or directory\)$"):
        load(Path("other.yaml"), environ={})
    with pytest.raises(ConfigError, match=r"^\.: cannot be read \(Is a directory\)$"):
        load(Path(), environ={})
    Path("config.yaml").write_bytes(b"server: a\nstore: \xff\n")
    with pytest.raises(ConfigError, match=r"^config.yaml:2: not UTF-8 \(the byte 0xff\)$"):
        load(None, environ={})
    Path("a\nb").write_text("x: 1")
    with pytest.raises(ConfigError, match=r"^a\\nb:1: x: unknown key"):
        load(Path("a\nb"), environ={})


def test_need() -> None:
    config = given_text("server: a\n")
    config.need("server", "store")
    with pytest.raises(ConfigError) as raised:
        config.need("server", "source_path", "restore_root")
    assert raised.value.message.splitlines() == [
        "config.yaml: source_path: not set, and this command needs it",
        "config.yaml: restore_root: not set, and this command needs it",
    ]


# How the folders lie to each other


def test_a_restore_root_may_be_a_source_path_or_above_it_or_skipped() -> None:
    for restore_root in ("/a/b", "/a", "/", "/a/bc", "/elsewhere"):
        given_text(f"source_path: /a/b\nstore: /s\nstate_dir: /t\nrestore_root: {restore_root}")
    for skip_path in ("/a/restored", "restored", "/a/r*/", "[x, ./restored]"):
        given_text(f"source_path: /a\nrestore_root: /a/restored/now\nskip_path: {skip_path}")
    for skip_path in ("/a/restore", "now", "/a/restored/now/x"):
        assert len(mistakes(f"source_path: /a\nrestore_root: /a/restored/now\nskip_path: {skip_path}")) == 1


def test_a_restore_root_of_the_command_line_may_be_anywhere_but_in_the_store() -> None:
    text = "source_path: /a\nstore: /s"
    assert given_text(text, restore_root="/a/b").restore_root == Path("/a/b")
    assert mistakes(text, restore_root="/s/b") == ["--to: lies inside store (/s)"]


def test_links_do_not_hide_that_folders_overlap(here: Path) -> None:
    (here / "a/b").mkdir(parents=True)
    (here / "link").symlink_to("a/b")
    assert mistakes("source_path: [a, link]") == [f"config.yaml:1: source_path: {here}/link lies inside {here}/a"]
    assert mistakes("source_path: a\nrestore_root: link")[0].startswith("config.yaml:2: restore_root: lies inside")


def test_own_paths(here: Path) -> None:
    config = given_text("source_path: [., {path: /mnt/snap, as: /data}]\nstate_dir: /data/state\nstore: /mnt/snap/s/t")
    here_root, data_root = config.source_path
    assert config.own_paths_below(here_root) == {
        b"guid_file_mapping.json",
        b"blobark-data/restore-metrics.json",
        b"blobark-data/save-metrics.json",
    }
    assert config.own_paths_below(data_root) == {b"state", b"s/t"}
    azure = given_text(f"source_path: /\nstore: azure\ncontainer_name: abc\nconnection_string: {KEY}\nstate_dir: /x/y")
    relative = str(here).encode()[1:]
    assert azure.own_paths_below(azure.source_path[0]) == {
        b"x/y",
        relative + b"/guid_file_mapping.json",
        relative + b"/blobark-data/restore-metrics.json",
        relative + b"/blobark-data/save-metrics.json",
    }


# Secrets


def test_the_environments_connection_string_is_used_where_there_is_none() -> None:
    environ = {"AZURE_STORAGE_CONNECTION_STRING": "AccountName=env;AccountKey=a"}
    azure = "store: azure\ncontainer_name: abc\n"
    assert login_of(azure, environ).secret.reveal() == environ["AZURE_STORAGE_CONNECTION_STRING"]
    assert login_of(f"{azure}connection_string: ''", environ).secret.reveal().startswith("AccountName=env")
    assert login_of(f"{azure}connection_string: {KEY}", environ).secret.reveal() == KEY
    # one that is not used harms nobody
    assert given_text("server: a", {"AZURE_STORAGE_CONNECTION_STRING": "junk"}).server == "a"
    (line,) = mistakes("store: azure\ncontainer_name: abc", {"AZURE_STORAGE_CONNECTION_STRING": "junk"})
    assert line.startswith("config.yaml: connection_string: not a connection string, expected ")


def test_a_secret_is_never_seen() -> None:
    secret = Secret("hidden")
    config = given_text(f"connection_string: {KEY};Hidden=hidden")
    for shown in (repr(secret), str(secret), f"{secret}", f"{secret!s:>20}", repr(config), str(config)):
        assert "hidden" not in shown
        assert "c2VjcmV0" not in shown
    for copied in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            copied(secret)
    with pytest.raises(TypeError):
        pickle.dumps(config)
    assert bool(secret) is True
    assert bool(Secret()) is False


@pytest.mark.parametrize(
    "value",
    [
        "hidden",
        "[hidden]",
        "{hidden: hidden}",
        "!hidden hidden",
        "DefaultEndpointsProtocol=http;AccountName=hidden;AccountKey=hidden",
        "BlobEndpoint=http://hidden;SharedAccessSignature=sig=hidden",
        "BlobEndpoint=https://hidden:hidden:hidden/;SharedAccessSignature=sig=hidden",
        "${NOT_SET:-hidden}",
        "${HIDDEN}",
        "'hidden\\q",
    ],
)
def test_no_mistake_shows_a_secret(value: str) -> None:
    for line in mistakes(f"connection_string: {value}\nmax_workers: x", {"HIDDEN": "hidden"}):
        assert "hidden" not in line


@pytest.mark.parametrize(
    ("value", "warned"),
    [
        (KEY, True),
        ("BlobEndpoint=https://a.b/;SharedAccessSignature=sv=1&sig=abc", True),
        ("${X:-AccountName=a;AccountKey=b}", True),
        ("AccountName=acc;AccountKey=${K}", False),
        ("${C}", False),
        ("BlobEndpoint=https://a.b/;SharedAccessSignature=${S}", False),
    ],
)
def test_a_secret_that_others_can_read_gives_a_warning(value: str, warned: bool) -> None:
    environ = {"K": "b", "C": KEY, "S": "sig=abc"}
    text = f'connection_string: "{value}"\n'
    file = Path("config.yaml")
    file.touch()
    for mode in (0o644, 0o640, 0o604):
        file.chmod(mode)
        warnings = given_text(text, environ).warnings
        assert [warning.startswith("config.yaml: others can read it, and") for warning in warnings] == [True] * warned
        assert "AccountKey" not in str(warnings)
    file.chmod(0o600)
    assert given_text(text, environ).warnings == ()


HTTPS = [
    "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=b==;EndpointSuffix=core.windows.net",
    "AccountName=a;AccountKey=b",
    "BlobEndpoint=https://a.blob.core.windows.net/;SharedAccessSignature=sv=1&sig=x%3D",
    "UseDevelopmentStorage=true",
    "UseDevelopmentStorage=true;DevelopmentStorageProxyUri=http://127.0.0.1",
    "BlobEndpoint=https://a.b/;DefaultEndpointsProtocol=http;AccountName=a",
    *(f"DefaultEndpointsProtocol=http;AccountName=a;AccountKey=b;BlobEndpoint=http://{host}:10000/a;"
      for host in ("127.0.0.1", "localhost", "LOCALHOST", "127.9.8.7", "[::1]")),
]  # fmt: skip
PLAIN_HTTP = [
    "DefaultEndpointsProtocol=http;AccountName=a;AccountKey=b",
    "defaultendpointsprotocol = HTTP ;accountname=a",
    "DefaultEndpointsProtocol=http;AccountName=localhost;EndpointSuffix=localhost",
    "UseDevelopmentStorage=true;DevelopmentStorageProxyUri=http://10.0.0.1",
    "BlobEndpoint=http://10.0.0.1:10000/a",
    "BLOBENDPOINT=HTTP://a.blob.core.windows.net",
    "BlobEndpoint=https://a.b/;BlobSecondaryEndpoint=http://a.c/;AccountName=a",
    "BlobEndpoint=http://127.0.0.1.example.com/",
    "BlobEndpoint=http://localhost.example.com/",
    "BlobEndpoint=http://1270.0.1/",
    "BlobEndpoint=https://a.b/;BlobEndpoint=http://a.b/",
    "BlobEndpoint=http://a.b/;BlobEndpoint=https://a.b/",
    "BlobEndpoint=ftp://a.b/",
]
NO_URL = [
    "BlobEndpoint=a.blob.core.windows.net;SharedAccessSignature=sig=x",
    "BlobEndpoint=https://a.blob.core.windows.net?sig=x",
    "BlobEndpoint=https://a.blob.core.windows.net:port/",
    "BlobEndpoint=http://127.0.0.1@example.com/",
    "BlobEndpoint=http://example.com\\@127.0.0.1/",
    "BlobEndpoint=http://127.0.0.1\\.example.com/",
    "BlobEndpoint=http:///a",
    "BlobEndpoint=http://[::1/",
]
JUNK = ["junk", "https://a.blob.core.windows.net/?sig=x", "AccountKey=x"]


def test_plain_http_is_for_loopback_alone() -> None:
    assert [connection_fault(text) for text in HTTPS] == [""] * len(HTTPS)
    assert [text for text in PLAIN_HTTP if not connection_fault(text).startswith("plain http is refused")] == []
    assert [text for text in NO_URL if not connection_fault(text).startswith("its endpoint is not a URL")] == []
    assert [text for text in JUNK if not connection_fault(text).startswith("not a connection string")] == []


def test_plain_http_is_refused_wherever_it_comes_from() -> None:
    fault = "connection_string: plain http is refused, except to this machine itself: use https"
    assert mistakes(f"server: a\nconnection_string: {PLAIN_HTTP[0]}") == [f"config.yaml:2: {fault}"]
    environ = {"AZURE_STORAGE_CONNECTION_STRING": PLAIN_HTTP[0]}
    assert mistakes("store: azure\ncontainer_name: abc", environ) == [f"config.yaml: {fault}"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("30s", 30.0), ("1.5 m", 90.0), ("1h", 3600.0), ("1S", 1.0), ("2.5s", 2.5)]
)
def test_times(text: str, seconds: float) -> None:
    assert given_text(f"timeout: {text}").timeout_s == seconds


@pytest.mark.parametrize("text", ["30", "0s", "0.5s", "2h", "-1s", "s", "1d", "1e3s", "none"])
def test_times_that_are_none(text: str) -> None:
    (mistake,) = mistakes(f"timeout: {text}")
    assert "expected a time from 1s to 1h, such as 30s" in mistake


def test_limits() -> None:
    config = given_text("max_bandwidth: 10MiB\nmax_requests_per_s: 7")
    assert (config.max_bandwidth, config.max_requests_per_s) == (10 << 20, 7)
    assert given_text("max_bandwidth: 1MB/s").max_bandwidth == 10**6
    config = given_text("max_bandwidth: none\nmax_requests_per_s: none")
    assert (config.max_bandwidth, config.max_requests_per_s) == (0, 0)


@pytest.mark.parametrize(
    "text", ["max_bandwidth: 0", "max_bandwidth: 1KiB", "max_bandwidth: fast", "max_bandwidth: -1"]
)
def test_bandwidths_that_are_none(text: str) -> None:
    (mistake,) = mistakes(text)
    assert "expected 64KiB or more, such as 10MiB, or none" in mistake


@pytest.mark.parametrize("text", ["0", "-1", "x", "1.5", "9999999999"])
def test_numbers_of_requests_that_are_none(text: str) -> None:
    (mistake,) = mistakes(f"max_requests_per_s: {text}")
    assert "expected 1 or more, or none" in mistake
