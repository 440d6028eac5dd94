"""`blobark schedule`: the two units with which systemd runs `blobark backup`, for this machine.

The service may read everything and write its own files alone. What would hide a part of the tree from it (PrivateTmp,
PrivateDevices, ProtectHome=yes, ProtectKernelModules) is left out: a backup would silently lack it. The units in
deploy/ are what this makes of the usual places.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from blobark.context import Context
from blobark.errors import ConfigError
from blobark.model import display
from blobark.output import Listing

SERVICE, TIMER = "blobark.service", "blobark.timer"
DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")

_SERVICE = """\
# One backup. Made by `blobark schedule`; docs/operations.md says what it needs.
[Unit]
Description=Blobark backup
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
ExecStart={command}
# Secrets of the store, a NAME=value a line, in a file that only root can read; without any it may be missing.
EnvironmentFile=-{environment}
Environment={temporary}
# Only the run itself is asked to stop: it ends its hooks.
KillMode=mixed
TimeoutStopSec=90
Nice=10
IOSchedulingClass=best-effort
IOSchedulingPriority=7
# It reads everything, and writes its own files alone.
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
# When blobark.service runs, in this machine's time. One that was missed is made up for.
[Unit]
Description=Blobark backup, {often}

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


def list_units(context: Context, daily: str, weekly: str, unit: str) -> Listing:
    """List the lines of both units, each after its name, or (with `unit`, its name) those of one alone.

    Raises:
        ConfigError: a path cannot stand in a unit.
    """
    config = context.config
    for path in (missing for missing in config.own_folders() if not missing.is_dir()):
        context.reporter.warn(
            f"warning: make {display(os.fsencode(path))} before the first run: the unit makes no folder"
        )
    file = Path(os.path.abspath(config.file))
    made = units(sys.executable, file, config.state_dir, config.own_folders(), daily=daily, weekly=weekly)
    return Listing("", iter(list(_lines(made, unit))))


def units(
    python: str, config: Path, state_dir: Path, writable: Iterable[Path], *, daily: str = "", weekly: str = ""
) -> dict[str, str]:
    """Return the text of each unit. The time is `daily` (02:30) or `weekly` (Sun 02:30). Raises `ConfigError`."""
    command = [python, "-m", "blobark", "backup", "--wait", "--config", str(config)]
    service = _SERVICE.format(
        command=" ".join(_quoted(part).replace("$", "$$") for part in command),
        environment=_unquoted(config.with_name("blobark.env")),
        temporary=_quoted(f"TMPDIR={state_dir}"),
        writable=" ".join(_quoted(str(path)) for path in writable),
    )
    day, _, time = weekly.rpartition(" ")
    calendar = f"{day} *-*-* {time}:00" if weekly else f"*-*-* {daily}:00"
    return {SERVICE: service, TIMER: _TIMER.format(often="every week" if weekly else "every day", calendar=calendar)}


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


def _lines(made: dict[str, str], unit: str) -> Iterator[UnitLine]:
    for name, text in made.items():
        if not unit:
            yield UnitLine(name, f"# /etc/systemd/system/{name}")
        if unit in ("", name):
            yield from (UnitLine(name, line) for line in text.splitlines())
        if not unit and name == SERVICE:
            yield UnitLine(name, "")


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
