"""The configuration: what is given arrives, and what is not has its default."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

from blobark.config import Config, Secret, SourceRoot, load
from blobark.retention import Keep
from tests.config_file import KEY, PING, given_text, mistakes

pytestmark = pytest.mark.usefixtures("here")
SHIPPED = Path(__file__).resolve().parent.parent / "config.yaml"


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


# Times and limits


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
