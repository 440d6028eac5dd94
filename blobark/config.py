"""The configuration: `config.yaml`, the environment and the command line become one frozen `Config`.

`load` finds every mistake before it gives up: one `ConfigError` with one line a mistake, which names the file, the
line and the key. Each value is read by its key's own rule, wherever it comes from. What opens a store is a
`Secret`: it is in no message, no repr and no pickle.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from itertools import permutations
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from blobark.config_azure import LOGIN_KEYS, Login, LoginFault, login
from blobark.config_file import Given, Mistakes, SettingsFile, option_of
from blobark.config_keys import (
    KEYS,
    AccessTier,
    Auth,
    ChangeDetection,
    Delta,
    Key,
    Secret,
    SourceRoot,
    UploadCheck,
    connection_fault,
)
from blobark.errors import ConfigError
from blobark.model import display
from blobark.retention import Keep

__all__ = ["ChangeDetection", "Config", "Login", "Secret", "SourceRoot", "connection_fault", "load"]

FILE_NAME: Final = "config.yaml"
_OWN_FILES: Final = ("guid_mapping_file", "metrics_log_file", "save_metrics_log_file", "metrics_textfile", "log_file")
_OWN_FOLDERS: Final = ("store", "state_dir", "journal_dir")
_SECRETS_WRITTEN: Final = {
    "connection_string": re.compile(r"accountkey\s*=\s*[^;\s]|\bsig=[^&;\s]", re.IGNORECASE),
    "account_key": re.compile(r"\S"),
    "sas_token": re.compile(r"\bsig(=|%3D)[^&;\s]", re.IGNORECASE),
    "ping_url": re.compile(r"://[^/]+/."),
}


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """What a run is told. Paths are absolute; None means not set."""

    file: Path
    source_path: tuple[SourceRoot, ...]
    guid_mapping_file: Path
    skip_files: tuple[str, ...]
    skip_path: tuple[str, ...]
    exclude: tuple[str, ...]
    one_file_system: bool
    change_detection: ChangeDetection
    delta: Delta
    pack_below_bytes: int
    """Files up to this size go into packs; 0: none does."""
    dedupe: bool
    compression: int
    """The level of zstd; 0: content is stored as it is."""
    store: Path | Literal["azure"]
    auth: Auth | None
    connection_string: Secret
    account_name: str | None
    account_key: Secret
    sas_token: Secret
    endpoint: str | None
    login: Login | None
    """How to log in to Azure, of the keys above and the environment; None where the store is no container."""
    container_name: str | None
    access_tier: AccessTier | None
    state_dir: Path
    server: str | None
    restore_root: Path | None
    upload_check: UploadCheck
    max_workers: int | None
    """None: as many as the machine is good for (`auto`)."""
    part_bytes: int
    """How much of a large file one request of a restore asks for at most."""
    max_memory_bytes: int
    timeout_s: float
    max_bandwidth: int
    """Bytes a second, both directions together; 0: any number."""
    max_requests_per_s: int
    """0: any number."""
    metrics_log_file: Path
    """The run log of a restore."""
    save_metrics_log_file: Path
    metrics_interval_s: float
    """Seconds between samples."""
    metrics_textfile: Path | None
    """What Prometheus' node exporter reads."""
    ping_url: Secret
    """The address of a health check; whoever has it can ping in our name."""
    log_file: Path | None
    """Gets a line for each backup."""
    journal_dir: Path | None
    """Where each run leaves a journal; None: in `state_dir`, see `journals_in`."""
    journals: int
    """So many are kept; 0: none is written."""
    max_age_s: int | None
    keep: Keep | None
    """Which snapshots a prune keeps; None: all of them."""
    hook_before: str | None
    hook_after: str | None
    hook_on_failure: str | None
    warnings: tuple[str, ...]
    """What a person should be told, one line each."""

    @property
    def journals_in(self) -> Path:
        """The folder of the journals."""
        return self.journal_dir or self.state_dir / "journals"

    def own_paths_below(self, root: SourceRoot) -> frozenset[bytes]:
        """Return the paths, relative to `root`, that a walk leaves out: Blobark's own, which each run changes."""
        found = {relative for _, path in _own(self) for relative in _relatives(path, root)}
        return frozenset(os.fsencode(relative) for relative in found - {""})

    def own_folders(self) -> list[Path]:
        """Return the folders in which Blobark writes but for a restore's, none inside another."""
        found = {path if key in _OWN_FOLDERS else path.parent for key, path in _own(self)}
        return sorted(one for one in found if not any(other in one.parents for other in found))

    def own_paths(self) -> list[Path]:
        """Return the files and folders that Blobark itself needs; a restore's place is none of them."""
        return [self.file, self.journals_in, *(path for _, path in _own(self))]

    def need(self, *keys: str) -> None:
        """Raise ConfigError, with one line for each of these keys that is not set."""
        missing = [f"{self.file}: {key}: not set, and this command needs it" for key in keys if not getattr(self, key)]
        if missing:
            raise ConfigError("\n".join(missing))


def load(
    path: Path | None,
    *,
    environ: Mapping[str, str],
    overrides: Mapping[str, object] | None = None,
    default_dir: Path | None = None,
) -> Config:
    """Read the configuration; without `path` the `config.yaml` of the current folder, else the one in `default_dir`.

    `overrides` are values of the command line, by key; None is "not given". Their paths start from the current folder.

    Raises:
        ConfigError: one line for each mistake.
    """
    file = path or _find(default_dir)
    shown = display(os.fsencode(file))
    mistakes = Mistakes(shown)
    settings = SettingsFile(file, environ, mistakes)
    given = settings.keys(frozenset(KEYS))
    options = {key: _from_command_line(value) for key, value in (overrides or {}).items() if value is not None}
    if options.keys() - KEYS.keys():
        raise TypeError(f"no such keys: {options.keys() - KEYS.keys()}")
    values = _Values(mistakes, Path(os.path.abspath(file)).parent, given, options)
    read = {rule.field or key: values.of(key) for key, rule in KEYS.items()}
    warnings: tuple[str, ...] = ()
    written = [key for key, secret in _SECRETS_WRITTEN.items() if key in given and secret.search(given[key].written)]
    if settings.others_can_read and written:
        warnings = (f"{shown}: others can read it, and it holds a secret: `chmod 600 {shown}`, or write ${{NAME}}",)
    if read["access_tier"] and read["store"] != "azure":
        warnings += (f"{shown}: access_tier: a folder has no tiers, so it is ignored",)
    azure = None
    if read["store"] == "azure" and not any(mistakes.about(key) for key in LOGIN_KEYS):
        try:
            azure = login(read, values.place, environ)
        except LoginFault as fault:
            values.mistake(fault.key, fault.fault)
    config = Config(file=file, warnings=warnings, login=azure, **read)
    for key, text in _conflicts(config, restore_aside="restore_root" in options):
        if getattr(config, key) or not mistakes.about(key):
            values.mistake(key, text)
    mistakes.raise_any()
    return config


class _Values:
    """Reads the values of the keys, from the command line, the file or the default, in that order."""

    def __init__(self, mistakes: Mistakes, base: Path, given: dict[str, Given], options: dict[str, Given]) -> None:
        self._mistakes = mistakes
        self._base = base
        self._given = given
        self._options = options

    def of(self, key: str) -> Any:
        """Return the value of a key. Where it is wrong the mistake is noted, and the default returned."""
        rule = KEYS[key]
        given = self._options.get(key) or self._given.get(key) or Given(0, rule.default)
        if rule.many:
            items = given.value if isinstance(given.value, list) else [given] if given.value is not None else []
            return tuple(value for value in (self._one(key, rule, item) for item in items) if value is not None)
        return self._one(key, rule, given)

    def place(self, key: str) -> str:
        """Return where a key was given."""
        if key in self._options:
            return option_of(key)
        return self._mistakes.place(self._given[key].line if key in self._given else 0)

    def mistake(self, key: str, fault: str, line: int = 0) -> None:
        """Note what is wrong with a key, where it was given."""
        if key in self._options:
            self._mistakes.add_option(key, fault)
        else:
            given = self._given.get(key)
            self._mistakes.add(line or (given.line if given else 0), key, fault)

    def _one(self, key: str, rule: Key, given: Given) -> Any:
        base = Path.cwd() if key in self._options else self._base
        value = given.value
        try:
            if isinstance(value, dict) and rule.read_mapping is not None:
                return rule.read_mapping(value, base)
            if isinstance(value, str):
                return rule.read(value, base)
            if value is None and not (rule.many and given.line):
                return None
            raise ValueError("expected a plain value")
        except ValueError as error:
            got = f", got {value[:80]!r}" if isinstance(value, str) and not rule.secret else ""
            self.mistake(key, f"{error}{got}", given.line)
            return rule.read(rule.default, self._base) if rule.default is not None else None


def _from_command_line(value: object) -> Given:
    if isinstance(value, list | tuple):
        return Given(0, [_from_command_line(item) for item in value])
    return Given(0, str(value).lower() if isinstance(value, bool) else str(value))


def _find(default_dir: Path | None) -> Path:
    folders = [Path(), *([default_dir] if default_dir else [])]
    found = next((folder / FILE_NAME for folder in folders if (folder / FILE_NAME).exists()), None)
    if found is None:
        places = " or ".join(["in this folder", *([f"in {default_dir}"] if default_dir else [])])
        raise ConfigError(f"{FILE_NAME}: there is none {places}", "name one with --config FILE")
    return found


# How the values get on with each other


def _conflicts(config: Config, *, restore_aside: bool) -> Iterator[tuple[str, str]]:
    """Yield (key, what is wrong). A restore_root for this time only, set aside, harms no later backup."""
    yield from _store_conflicts(config)
    yield from _root_conflicts(config.source_path)
    folders = [(key, path) for key, path in _own(config) if key in _OWN_FOLDERS]
    store = config.store if isinstance(config.store, Path) else None
    if store and (_is_inside(store, config.state_dir) or _is_inside(config.state_dir, store)):
        yield "state_dir", "expected another folder than that of store, and neither inside the other"
    if store and config.journal_dir and _is_inside(config.journal_dir, store):
        yield "journal_dir", "lies inside store"
    files: dict[Path, str] = {}
    for key in _OWN_FILES:
        if (path := getattr(config, key)) and (other := files.setdefault(path, key)) != key:
            yield key, f"expected another file than {other}"
    for key, folder in folders:
        if any(_is_inside(root.path, folder) for root in config.source_path):
            yield "source_path", f"lies inside {key} ({folder})"
        if config.restore_root and _is_inside(config.restore_root, folder):
            yield "restore_root", f"lies inside {key} ({folder})"
    if config.restore_root and not restore_aside:
        for root in config.source_path:
            inside = _relatives(config.restore_root, root) - {""}
            if any(not _is_skipped(relative, root, config.skip_path) for relative in inside):
                place = display(root.name)
                yield "restore_root", f"lies inside source_path {place}: move it, or name it in skip_path as well"


def _store_conflicts(config: Config) -> Iterator[tuple[str, str]]:
    azure = config.store == "azure"
    if not azure and config.connection_string and (fault := connection_fault(config.connection_string.reveal())):
        yield "connection_string", fault
    if azure and not config.container_name:
        yield "container_name", "not set, and store: azure needs it"


def _root_conflicts(roots: tuple[SourceRoot, ...]) -> Iterator[tuple[str, str]]:
    for one, other in permutations(roots, 2):
        names = os.fsdecode(one.name), os.fsdecode(other.name)
        shown = [display(root.name) for root in (one, other)]
        if names[0] == names[1]:
            yield "source_path", f"{shown[0]} is there twice"
            return
        if _below(*names) is not None or _is_inside(one.path, other.path):
            yield "source_path", f"{shown[0]} lies inside {shown[1]}"


def _own(config: Config) -> list[tuple[str, Path]]:
    """What Blobark itself writes, by key."""
    keys = (*_OWN_FOLDERS, *_OWN_FILES)
    return [(key, path) for key in keys if isinstance(path := getattr(config, key), Path)]


def _views(path: Path) -> set[str]:
    """A path as it is written, and as the links in it lead."""
    return {str(path), os.path.realpath(path)}


def _is_inside(path: Path, folder: Path) -> bool:
    return any(_below(one, other) is not None for one in _views(path) for other in _views(folder))


def _relatives(path: Path, root: SourceRoot) -> set[str]:
    """What a path is called below a root, whichever way it is looked at; "" is the root itself."""
    folders = {*_views(root.path), os.fsdecode(root.name)}
    found = (_below(one, folder) for one in _views(path) for folder in folders)
    return {relative for relative in found if relative is not None}


def _below(path: str, folder: str) -> str | None:
    """The path relative to a folder, "" for the folder itself, None where it lies elsewhere."""
    stem = folder.rstrip("/") + "/"
    return (path + "/")[len(stem) : -1] if (path + "/").startswith(stem) else None


def _is_skipped(relative: str, root: SourceRoot, skip_path: tuple[str, ...]) -> bool:
    whole = f"{os.fsdecode(root.name)}/{relative}"
    for entry in skip_path:
        globs = [part for part in entry.split("/") if part not in ("", ".")]
        parts = [part for part in (whole if entry.startswith("/") else relative).split("/") if part]
        if len(globs) <= len(parts) and all(map(fnmatchcase, parts, globs)):
            return True
    return False
