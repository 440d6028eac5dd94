"""What the keys of the configuration mean: how each is read from its text, and what is refused.

A reader takes a text and the folder that relative paths start from, and raises ValueError("expected ..."), which
never holds the text itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, NoReturn, get_args

import msgspec

from blobark.codec import DEFAULT_LEVEL, LEVELS
from blobark.config_file import Given
from blobark.config_keep import keep_rules, keep_text

Delta = Literal["whole", "extents", "off"]
ChangeDetection = Literal["strict", "no-inode", "mtime", "digest"]
UploadCheck = Literal["full", "none"]
Auth = Literal["connection_string", "key", "sas", "entra"]
AccessTier = Literal["hot", "cool", "cold", "archive"]


_NO_URL: Final = "its endpoint is not a URL"
_MOST_WORKERS: Final = 512
_LEAST_MEMORY_BYTES: Final = 16 << 20
_LEAST_BANDWIDTH: Final = 64 << 10
_MOST_PACKED_BYTES: Final = 4 << 20
_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_DECIMAL_UNITS: Final = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


class Secret:
    """A text that must not be seen: only `reveal` gives it out."""

    __slots__ = ("_text",)

    def __init__(self, text: str = "") -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text itself, for whoever hands it to a store's library."""
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __repr__(self) -> str:
        return "Secret(***)" if self._text else "Secret()"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not copied and not pickled")


class SourceRoot(msgspec.Struct, frozen=True):
    """A tree to back up: where it is read, and its real name, absolute; they differ for a file system's snapshot."""

    path: Path
    name: bytes


class Key(NamedTuple):
    """How a key is read: `read` raises ValueError("expected ..."); `many` takes a list; a secret is never echoed."""

    read: Callable[[str, Path], Any]
    default: str | None = None
    many: bool = False
    secret: bool = False
    field: str = ""
    """What it is called in Config, if not like the key."""
    read_mapping: Callable[[dict[str, Given], Path], Any] | None = None
    """Reads `{name: value, ...}`, where that can be given."""


def _path(text: str, base: Path) -> Path:
    expanded = os.path.expanduser(text)
    if not expanded or "\0" in expanded:
        raise ValueError("expected a path")
    if expanded.startswith("~"):
        raise ValueError("expected a path: there is no such user here (./~ is a name)")
    path = os.path.abspath(base / expanded)
    return Path(path[1:] if path.startswith("//") else path)


def source_root(text: str, base: Path) -> SourceRoot:
    """Read a root that is known by the path it is read at."""
    path = _path(text, base)
    return SourceRoot(path, os.fsencode(path))


def renamed_source_root(fields: dict[str, Given], base: Path) -> SourceRoot:
    """Read a root that is given as `{path: ..., as: ...}`."""
    texts = {name: given.value for name, given in fields.items()}
    path, name = texts.get("path"), texts.get("as", texts.get("path"))
    if not isinstance(path, str) or not isinstance(name, str) or not texts.keys() <= {"path", "as"}:
        raise ValueError("expected a path, or {path: where to read, as: its real name}")
    if "as" in texts and not os.path.expanduser(name).startswith("/"):
        raise ValueError(f"expected `as` to be an absolute path, got {name!r}")
    return SourceRoot(_path(path, base), os.fsencode(_path(name, base)))


def _store(text: str, base: Path) -> Path | Literal["azure"]:
    if text == "azure":
        return "azure"
    if "://" in text:
        raise ValueError("expected a folder, or azure")
    return _path(text, base)


def _workers(text: str, _base: Path) -> int | None:
    if text == "auto":
        return None
    if not re.fullmatch(r"[0-9]{1,9}", text) or not 1 <= int(text) <= _MOST_WORKERS:
        raise ValueError(f"expected a whole number from 1 to {_MOST_WORKERS} or auto")
    return int(text)


def _size_bytes(text: str, _base: Path) -> int:
    size_bytes = bytes_of(text)
    if size_bytes < _LEAST_MEMORY_BYTES:
        raise ValueError(f"expected at least {_LEAST_MEMORY_BYTES >> 20}MiB")
    return size_bytes


def bytes_of(text: str) -> int:
    """Read a size, in bytes. Raises ValueError("expected ...")."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([kmgt]?)(i?)(b?)", text.strip().lower())
    if match is None or (match[3] and not match[2]):
        raise ValueError("expected a size such as 256MiB or 1GB")
    units = _DECIMAL_UNITS if match[4] and not match[3] else _UNITS
    return int(float(match[1]) * units[match[2]])


def _timeout(text: str, _base: Path) -> float:
    return _seconds(text, 1, 3600, "expected a time from 1s to 1h, such as 30s")


def _interval(text: str, _base: Path) -> float:
    return _seconds(text, 0.1, 60, "expected a time from 0.1s to 1m, such as 1s")


def _seconds(text: str, least_s: float, most_s: float, expected: str) -> float:
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,3})?) ?(s|m|h)", text.strip().lower())
    if match is None or not least_s <= (seconds := float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]) <= most_s:
        raise ValueError(expected)
    return seconds


def _age_s(text: str, _base: Path) -> int:
    match = re.fullmatch(r"([0-9]{1,6}) ?(m|h|d|w)", text.strip().lower())
    if match is None or int(match[1]) == 0:
        raise ValueError("expected a time such as 26h, 90m, 7d or 2w")
    return int(match[1]) * {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}[match[2]]


def _bandwidth(text: str, _base: Path) -> int:
    return _rate(text, lambda: bytes_of(text.removesuffix("/s")), _LEAST_BANDWIDTH, "64KiB or more, such as 10MiB")


def _requests(text: str, _base: Path) -> int:
    return _rate(text, lambda: int(text) if re.fullmatch("[0-9]{1,9}", text) else 0, 1, "1 or more")


def _rate(text: str, read: Callable[[], int], least: int, expected: str) -> int:
    """Read what is allowed in a second; 0 stands for `none`."""
    if text == "none":
        return 0
    try:
        per_second = read()
    except ValueError:
        per_second = 0
    if per_second < least:
        raise ValueError(f"expected {expected}, or none")
    return per_second


def _journals(text: str, _base: Path) -> int:
    if not re.fullmatch(r"[0-9]{1,4}", text):
        raise ValueError("expected a whole number up to 9999, or 0 for none")
    return int(text)


def _flag(text: str, _base: Path) -> bool:
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    if text.lower() not in words:
        raise ValueError("expected true or false")
    return words[text.lower()]


def _one_of(words: object) -> Callable[[str, Path], str]:
    """Return a reader of one of the words of a `Literal`."""
    *others, last = get_args(words)

    def read(text: str, _base: Path) -> str:
        if text not in (*others, last):
            raise ValueError(f"expected {', '.join(others)} or {last}")
        return text

    return read


def _ping_url(text: str, _base: Path) -> Secret:
    from urllib.parse import urlsplit

    try:
        url = urlsplit(text)
        is_good = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0 and not url.fragment
        is_good = is_good and "@" not in url.netloc  # nobody would be asked with that name and password
    except ValueError:
        is_good = False
    if text and (not is_good or re.search(r"[^\x21-\x7e]", text)):
        raise ValueError("expected an address such as https://hc-ping.com/<uuid>")
    return Secret(text)


def _compression(text: str, _base: Path) -> int:
    """Read a level of zstd; 0 stands for `none`."""
    name, _, level = text.partition(":")
    if text == "none":
        return 0
    if name != "zstd" or (":" in text and not (re.fullmatch("[0-9]{1,2}", level) and int(level) in LEVELS)):
        raise ValueError(f"expected none, zstd, or zstd:LEVEL with a level from {LEVELS[0]} to {LEVELS[-1]}")
    return int(level) if level else DEFAULT_LEVEL


def _pack_below(text: str, _base: Path) -> int:
    """Read the size up to which files are packed, in bytes; 0 for none."""
    size_bytes = 0 if text == "0" else bytes_of(text)
    if size_bytes > _MOST_PACKED_BYTES:
        raise ValueError(f"expected 0 (off), or a size of at most {_MOST_PACKED_BYTES >> 20}MiB, such as 64KiB")
    return size_bytes


def part_size(text: str, _base: Path = Path()) -> int:
    """Read how much of a large file one request asks for at most, in bytes. Raises `ValueError`."""
    size_bytes = bytes_of(text)
    if not 1 << 20 <= size_bytes <= 64 << 20:
        raise ValueError("expected a size from 1MiB to 64MiB")
    return size_bytes


def _server(text: str, _base: Path) -> str:
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,62}", text):
        raise ValueError("expected up to 63 of a-z, 0-9, . and -, beginning with a letter or a digit")
    return text


def _container(text: str, _base: Path) -> str:
    if not re.fullmatch(r"(?=.{3,63}\Z)[a-z0-9]+(-[a-z0-9]+)*|\$root", text):
        raise ValueError("expected 3 to 63 of a-z, 0-9 and single -")
    return text


def _account_name(text: str, _base: Path) -> str:
    if not re.fullmatch(r"[a-z0-9]{3,24}", text):
        raise ValueError("expected 3 to 24 of a-z and 0-9")
    return text


def _endpoint(text: str, _base: Path) -> str:
    if fault := endpoint_fault(text):
        raise ValueError(f"expected https://<host>[:port][/path]: {fault}")
    return text.rstrip("/")


def _file_glob(text: str, _base: Path) -> str:
    if not text or "/" in text or "\0" in text:
        raise ValueError("expected a file name or a glob of one, without / (skip_path and exclude take paths)")
    return text


def _skip_path(text: str, _base: Path) -> str:
    expanded = os.path.expanduser(text)
    parts = [part for part in expanded.split("/") if part not in ("", ".")]
    if not parts or "\0" in text or ".." in parts:
        raise ValueError("expected a path, absolute or relative to each source_path, without ..")
    if any("**" in part for part in parts):
        raise ValueError("expected a path without ** (exclude takes it)")
    return expanded


def _pattern(text: str, _base: Path) -> str:
    if not text.strip() or "\n" in text or "\0" in text:
        raise ValueError("expected one gitignore pattern")
    return text


def _command(text: str, _base: Path) -> str:
    if not text.strip() or "\0" in text:
        raise ValueError("expected a command for /bin/sh")
    return text


def _secret(text: str, _base: Path) -> Secret:
    return Secret(text)


KEYS: Final[dict[str, Key]] = {
    "source_path": Key(source_root, many=True, read_mapping=renamed_source_root),
    "guid_mapping_file": Key(_path, "guid_file_mapping.json"),
    "skip_files": Key(_file_glob, many=True),
    "skip_path": Key(_skip_path, many=True),
    "exclude": Key(_pattern, many=True),
    "one_file_system": Key(_flag, "false"),
    "change_detection": Key(_one_of(ChangeDetection), "strict"),
    "delta": Key(_one_of(Delta), "whole"),
    "pack_below": Key(_pack_below, "0", field="pack_below_bytes"),
    "dedupe": Key(_flag, "false"),
    "compression": Key(_compression, "none"),
    "store": Key(_store, "blobark-data/store"),
    "auth": Key(_one_of(Auth)),
    "connection_string": Key(_secret, "", secret=True),
    "account_name": Key(_account_name),
    "account_key": Key(_secret, "", secret=True),
    "sas_token": Key(_secret, "", secret=True),
    "endpoint": Key(_endpoint, secret=True),
    "container_name": Key(_container),
    "access_tier": Key(_one_of(AccessTier)),
    "state_dir": Key(_path, "blobark-data/state"),
    "server": Key(_server),
    "restore_root": Key(_path),
    "upload_check": Key(_one_of(UploadCheck), "full"),
    "max_workers": Key(_workers, "auto"),
    "part_size": Key(part_size, "8MiB", field="part_bytes"),
    "max_memory": Key(_size_bytes, "256MiB", field="max_memory_bytes"),
    "timeout": Key(_timeout, "30s", field="timeout_s"),
    "max_bandwidth": Key(_bandwidth, "none"),
    "max_requests_per_s": Key(_requests, "none"),
    "metrics_log_file": Key(_path, "blobark-data/restore-metrics.json"),
    "save_metrics_log_file": Key(_path, "blobark-data/save-metrics.json"),
    "metrics_interval": Key(_interval, "1s", field="metrics_interval_s"),
    "metrics_textfile": Key(_path),
    "ping_url": Key(_ping_url, "", secret=True),
    "log_file": Key(_path),
    "journal_dir": Key(_path),
    "journals": Key(_journals, "30"),
    "max_age": Key(_age_s, field="max_age_s"),
    "keep": Key(keep_text, read_mapping=keep_rules),
    "hook_before": Key(_command, secret=True),
    "hook_after": Key(_command, secret=True),
    "hook_on_failure": Key(_command, secret=True),
}


# The connection string


def connection_fault(connection_string: str) -> str:
    """Return why a connection string is refused, "" when it is fine. Plain http is for loopback alone."""
    pairs = [part.partition("=") for part in connection_string.split(";") if part.strip()]
    parts = [(name.strip().lower(), value.strip()) for name, _, value in pairs]
    names = {name for name, _ in parts}
    if not names & {"accountname", "blobendpoint", "usedevelopmentstorage"}:
        return "not a connection string, expected `AccountName=...;AccountKey=...` or `BlobEndpoint=...;Shared...`"
    if not names & {"blobendpoint", "usedevelopmentstorage"}:
        parts += [("blobendpoint", f"{value}://by.name") for name, value in parts if name == "defaultendpointsprotocol"]
    endpoints = [value for name, value in parts if name.endswith(("endpoint", "proxyuri"))]
    return next(filter(None, map(endpoint_fault, endpoints)), "")


def endpoint_fault(endpoint: str) -> str:
    """Return why the address of a service is refused, "" when it is fine. Plain http is for loopback alone.

    Whoever listens to it would get the content, and with a SAS the credentials.
    """
    from urllib.parse import urlsplit

    try:
        url = urlsplit(endpoint)
        scheme, host, _ = url.scheme, url.hostname, url.port
    except ValueError:
        return _NO_URL
    if not scheme or not host or re.search(r"[\\@?#\s\x00-\x1f]", endpoint):
        return _NO_URL
    if scheme == "https" or (scheme == "http" and _is_loopback(host)):
        return ""
    return "plain http is refused, except to this machine itself: use https"


def _is_loopback(host: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
