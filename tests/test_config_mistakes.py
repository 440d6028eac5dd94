"""The configuration: each mistake has its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from blobark.config import load
from blobark.errors import ConfigError
from tests.config_file import given_text, mistakes

pytestmark = pytest.mark.usefixtures("here")

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
    "ping_url: https://me:word@x/y": "1: ping_url: expected an address such as https://hc-ping.com/<uuid>",
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
