"""Telling monitoring how runs went: a textfile for Prometheus' node exporter, and pings for a health check.

The textfile holds what is known of the last run of each command; a run replaces the lines with its own labels, and
leaves all others. Pings are what healthchecks.io calls them: `<url>/start`, then `<url>`, or `<url>/fail`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit, urlunsplit

from metrics.files import write_whole

PING_S: Final = 5.0
LOCK_S: Final = 5.0
FAMILIES: Final = {
    "blobark_last_success_timestamp_seconds": "When a run ended last with exit code 0, in seconds since 1970.",
    "blobark_last_run_timestamp_seconds": "When a run ended last.",
    "blobark_last_run_duration_seconds": "How long it took.",
    "blobark_last_run_bytes": "Bytes that it indexed, sent, wrote, checked, mended or deleted.",
    "blobark_last_run_files": "Files that it indexed, sent or wrote; blobs that it checked, mended or deleted.",
    "blobark_last_run_failures": "Items that failed, or are damaged.",
    "blobark_last_run_exit_code": "Its exit code.",
}
_LINE: Final = re.compile(r"([a-z_]+)(\{[^\n]*\}) (\S+)")


def write_textfile(path: Path, labels: Mapping[str, str], values: Mapping[str, float]) -> None:
    """Set the values (by name, as in FAMILIES) of these labels in the textfile. Raises `OSError`, `ValueError`.

    The file is replaced as a whole, and anybody may read it: the exporter is another user. It holds no secret.
    """
    path = Path(os.path.realpath(path))  # a link stays, and what it leads to is replaced
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _lock(folder)  # a save and a restore may end at the same moment
        lines = _read(path)
        own = "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"
        for name, value in values.items():
            lines[name][own] = f"{value:.15g}"
        text = "".join(
            f"# HELP {name} {about}\n# TYPE {name} gauge\n" + "".join(f"{name}{own} {value}\n" for own, value in found)
            for name, about in FAMILIES.items()
            if (found := sorted(lines[name].items()))
        )
        write_whole(path, text, mode=0o644)
    finally:
        os.close(folder)


def ping(url: str, what: str = "") -> str:
    """Get `url`, with `/what` after its path; return what went wrong in words that do not hold the URL, "" for nothing.

    Takes five seconds at most, whatever hangs.
    """
    parts = urlsplit(url)
    address = urlunsplit(parts._replace(path=parts.path.rstrip("/") + (f"/{what}" if what else "")))
    said = [f"no answer within {PING_S:.0f} s"]
    # A thread, since the look-up of a name has no time limit of its own.
    thread = threading.Thread(target=_get, args=(address, said), name="ping", daemon=True)
    thread.start()
    thread.join(PING_S)
    return said[-1]


def _lock(folder: int) -> None:
    """Lock a folder. Whoever may read it can do that, so nobody is waited for for long: `OSError`."""
    until_s = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= until_s:
                raise OSError(errno.EWOULDBLOCK, "another process has locked its folder") from None
            time.sleep(0.01)


def _get(address: str, said: list[str]) -> None:
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    try:
        # The scheme is http or https: the configuration sees to that.
        with urlopen(Request(address, headers={"User-Agent": "blobark"}), timeout=PING_S) as answer:  # noqa: S310
            answer.read(1024)
        said.append("")
    except HTTPError as error:
        said.append(f"the answer was {error.code}")
    except OSError as error:
        reason = getattr(error, "reason", error)
        said.append(getattr(reason, "strerror", None) or type(reason).__name__)
    except (HTTPException, ValueError) as error:
        said.append(type(error).__name__)


def _read(path: Path) -> dict[str, dict[str, str]]:
    """Return the values of each family by its labels; raises `ValueError` when somebody else has written the file."""
    lines: dict[str, dict[str, str]] = {name: {} for name in FAMILIES}
    try:
        text = path.read_bytes().decode()
    except FileNotFoundError:
        return lines
    for line in text.split("\n"):  # a label may have what Python takes for the end of a line, too
        match = _LINE.fullmatch(line)
        if match and match[1] in lines:
            lines[match[1]][match[2]] = match[3]
        elif line.strip() and not line.startswith("# "):
            raise ValueError("it holds lines that are not Blobark's")
    return lines


def _escaped(value: str) -> str:
    value = value.encode("utf-8", "backslashreplace").decode()
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
