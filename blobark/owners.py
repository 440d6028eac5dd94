"""Whose the restored items are: other users and groups than the snapshot's, or whoever restores.

A rule is `user:OLD:NEW` or `group:OLD:NEW`. OLD is a name or a number as the snapshot has it, or `*` for all others;
NEW a name or a number of this machine. Names are compared with the recorded names, numbers with the recorded numbers.
Ids inside of ACLs stay as they are.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from msgspec.structs import replace

from blobark.errors import ConfigError
from blobark.model import Entry, printable

ANYBODY = "*"
_MOST_ID = (1 << 32) - 2


@dataclass(slots=True)
class Owners:
    """What becomes of owners; as it is made, they stay."""

    mine: bool = False
    """Everything belongs to who restores."""
    users: dict[str, int] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, rules: str, *, mine: bool) -> Owners:
        """Return the owners of a command line; `rules` are rules between commas, or name a file with a rule a line.

        Raises:
            ConfigError: a rule is none, names nobody of this machine, or comes twice; both were said.
        """
        owners = cls(mine)
        if rules and mine:
            raise ConfigError("--owner-map and --no-owner contradict each other", "say one of them")
        for rule in _rules(rules) if rules else ():
            owners._add(rule)
        return owners

    def __bool__(self) -> bool:
        """Whether any owner may change."""
        return bool(self.mine or self.users or self.groups)

    def apply(self, entry: Entry) -> Entry:
        """Return an entry with its owner as it is to be restored; set-id bits were not meant for who restores."""
        if self.mine:
            uid, gid = os.geteuid(), os.getegid()
            same = (uid, gid) == (entry.uid, entry.gid)
            mode = entry.mode if same else entry.mode & ~(stat.S_ISUID | stat.S_ISGID)
            return replace(entry, uid=uid, gid=gid, user="", group="", mode=mode)
        uid, gid = _mapped(self.users, entry.user, entry.uid), _mapped(self.groups, entry.group, entry.gid)
        if (uid, gid) == (entry.uid, entry.gid):
            return entry
        user = entry.user if uid == entry.uid else ""
        return replace(entry, uid=uid, gid=gid, user=user, group=entry.group if gid == entry.gid else "")

    def _add(self, rule: str) -> None:
        kind, _, rest = rule.partition(":")
        old, _, new = rest.rpartition(":")
        if kind not in ("user", "group") or not old or not new:
            raise ConfigError(f"--owner-map: expected user:OLD:NEW or group:OLD:NEW, got {rule[:80]!r}")
        table = self.users if kind == "user" else self.groups
        if old in table:
            raise ConfigError(f"--owner-map: {kind} {old[:80]!r} is there twice")
        table[old] = _number(kind, new)


def _mapped(table: dict[str, int], name: str, number: int) -> int:
    if not table:
        return number
    found = table.get(name) if name else None
    if found is None:
        found = table.get(str(number))
    return table.get(ANYBODY, number) if found is None else found


def _rules(text: str) -> Iterable[str]:
    if ":" in text:
        return [rule.strip() for rule in text.split(",") if rule.strip()]
    try:
        lines = Path(text).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError, ValueError):
        raise ConfigError(f"--owner-map: {printable(text)} is no rule, and no file that can be read") from None
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _number(kind: str, name: str) -> int:
    """Return the number of a user or group of this machine."""
    if name.isascii() and name.isdigit():
        if int(name) <= _MOST_ID:
            return int(name)
    else:
        try:
            return pwd.getpwnam(name).pw_uid if kind == "user" else grp.getgrnam(name).gr_gid
        except (KeyError, ValueError):
            pass
    raise ConfigError(f"--owner-map: there is no {kind} {name[:80]!r} on this machine")
