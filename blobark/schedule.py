"""`blobark schedule`: the units with which systemd runs `blobark backup`, `prune` and `verify`, for this machine.

Each has a service and a timer. A service may read everything and write its own files alone. What would hide a part of
the tree from it (PrivateTmp, PrivateDevices, ProtectHome=yes, ProtectKernelModules) is left out: a backup would
silently lack it. The units in deploy/ are what this makes of the usual places.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from blobark.context import Context
from blobark.errors import ConfigError
from blobark.model import display
from blobark.output import Listing

BACKUP, PRUNE, VERIFY = "blobark", "blobark-prune", "blobark-verify"
NAMES = tuple(f"{job}.{kind}" for job in (BACKUP, PRUNE, VERIFY) for kind in ("service", "timer"))
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
LAST_DAY = 28
"""Of a month, that every month has."""

_SERVICE = """\
# One run of `blobark {what}`. Made by `blobark schedule`; docs/operations.md says what it needs.
[Unit]
Description=Blobark {what}
Wants=network-online.target
After={after}

[Service]
Type=oneshot
ExecStart={command}
# Secrets of the store, a NAME=value a line, in a file that only root can read; without any it may be missing.
{environment}
Environment={temporary}
# Only the run itself is asked to stop: it ends its hooks.
KillMode=mixed
TimeoutStopSec=90
Nice=10
IOSchedulingClass=best-effort
IOSchedulingPriority=7
# It may read everything, and writes its own files alone.
CapabilityBoundingSet=CAP_DAC_READ_SEARCH
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=read-only
ReadWritePaths={writable}
UMask=0077
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelTunables=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
"""

_TIMER = """\
# When {job}.service runs, in this machine's time. One that was missed is made up for.
[Unit]
Description=Blobark {what}, {often}

[Timer]
OnCalendar={calendar}
Persistent=true
RandomizedDelaySec=15min

[Install]
WantedBy=timers.target
"""


class UnitLine(msgspec.Struct, frozen=True):
    """One line of a unit."""

    unit: str
    text: str

    def line(self) -> str:
        """Return the line for a person: as it stands in the file."""
        return self.text


@dataclass(frozen=True, slots=True)
class Times:
    """When each runs, as the functions below have read it; "" for what does not."""

    backup: str = ""
    prune: str = ""
    verify: str = ""
    sample: str = ""
    """Of the blobs, read with each verification: a percentage, "" for none."""


def list_units(context: Context, times: Times, unit: str) -> Listing:
    """List the lines of the units, each after its name, or (with `unit`, its name) those of one alone.

    Raises:
        ConfigError: a path cannot stand in a unit, or the unit is of nothing that has a time.
    """
    config = context.config
    for path in (missing for missing in config.own_folders() if not missing.is_dir()):
        context.reporter.warn(
            f"warning: make {display(os.fsencode(path))} before the first run: the unit makes no folder"
        )
    file = Path(os.path.abspath(config.file))
    made = units(sys.executable, file, config.state_dir, config.own_folders(), times)
    if unit and unit not in made:
        raise ConfigError(f"--unit {unit}: there is no time for it", "see blobark schedule --help")
    return Listing("", iter(list(_lines(made, unit))))


def units(python: str, config: Path, state_dir: Path, writable: Iterable[Path], times: Times) -> dict[str, str]:
    """Return the text of each unit. Raises `ConfigError`."""
    reading = ["--read", "--sample", times.sample] if times.sample else []
    jobs = (
        (BACKUP, times.backup, ["backup", "--wait"]),
        (PRUNE, times.prune, ["prune", "--yes"]),
        (VERIFY, times.verify, ["verify", *reading]),
    )
    made = {}
    for job, when, command in jobs:
        if not when:
            continue
        # What runs beside a backup waits until that has finished. Its own file may overrule what is in the first.
        others = () if job == BACKUP else (job,)
        after = ["network-online.target", *(f"{BACKUP}.service" for _ in others)]
        secrets = (_unquoted(config.with_name(f"{name}.env")) for name in (BACKUP, *others))
        line = [python, "-m", "blobark", *command, "--config", str(config)]
        made[f"{job}.service"] = _SERVICE.format(
            what=command[0],
            after=" ".join(after),
            command=" ".join(_quoted(part).replace("$", "$$") for part in line),
            environment="\n".join(f"EnvironmentFile=-{path}" for path in secrets),
            temporary=_quoted(f"TMPDIR={state_dir}"),
            writable=" ".join(_quoted(str(path)) for path in writable),
        )
        calendar, often = _calendar(when)
        made[f"{job}.timer"] = _TIMER.format(job=job, what=command[0], often=often, calendar=calendar)
    return made


def _calendar(when: str) -> tuple[str, str]:
    """Return a time as systemd has it, and how often that is."""
    day, _, time = when.rpartition(" ")
    if not day:
        return f"*-*-* {time}:00", "every day"
    if day.isdigit():
        return f"*-*-{day:0>2} {time}:00", "every month"
    return f"{day} *-*-* {time}:00", "every week"


def daily_time(text: str) -> str:
    """Return a time of the day, HH:MM. Raises `ValueError`."""
    if not re.fullmatch(r"([01][0-9]|2[0-3]):[0-5][0-9]", text):
        raise ValueError("expected a time such as 02:30")
    return text


def weekly_time(text: str) -> str:
    """Return a day and a time, as in `Sun 02:30`. Raises `ValueError`."""
    day, _, time = text.partition(" ")
    if day.capitalize() not in DAYS:
        raise ValueError(f"expected a day and a time such as 'Sun 02:30' ({', '.join(DAYS)})")
    return f"{day.capitalize()} {daily_time(time)}"


def any_time(text: str) -> str:
    """Return a time of every day, week or month: `02:30`, `Sun 02:30` or `1 02:30`. Raises `ValueError`."""
    day, _, time = text.rpartition(" ")
    if not day:
        return daily_time(time)
    if day.isdecimal() and day.isascii():
        if not 1 <= int(day) <= LAST_DAY:
            raise ValueError(f"expected a day of the month from 1 to {LAST_DAY}")
        return f"{int(day)} {daily_time(time)}"
    return weekly_time(text)


def _lines(made: dict[str, str], unit: str) -> Iterator[UnitLine]:
    for number, (name, text) in enumerate(made.items()):
        if not unit:
            yield from [UnitLine(name, "")] if number else []
            yield UnitLine(name, f"# /etc/systemd/system/{name}")
        if unit in ("", name):
            yield from (UnitLine(name, line) for line in text.splitlines())


def _unquoted(path: Path) -> str:
    """Return a path as the rest of a line, where quotes mean nothing."""
    return _checked(str(path)).replace("%", "%%")


def _quoted(text: str) -> str:
    """Return a word as systemd reads it: in quotes where it needs them."""
    escaped = _checked(text).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return escaped if re.fullmatch(r"[\w./=:@%+,-]+", escaped) else f'"{escaped}"'


def _checked(text: str) -> str:
    if not text.isprintable():
        raise ConfigError(f"{display(os.fsencode(text))} cannot stand in a unit of systemd", "use another path")
    return text
