"""Make docs/demo.svg, the picture in README.md: what `python3 dev.py demo` shows in a terminal, as it was shown.

.venv/bin/python tools/picture.py
"""

from __future__ import annotations

import os
import pty
import re
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

REPOSITORY = Path(__file__).resolve().parent.parent
VIEW = re.compile(r"\x1b\[\?25l.*?\x1b\[\?25h(?:\r|\x1b\[2K|\x1b\[1A)*", re.DOTALL)
"""The live view of a run, from the moment it hides the cursor until it has taken itself away."""


def main() -> int:
    """Run the demo in a terminal of its own, and draw what is on it at the end."""
    shown = bytearray()

    def keep(descriptor: int) -> bytes:
        data = os.read(descriptor, 65536)
        shown.extend(data)
        return data

    os.environ["COLUMNS"] = "92"
    status = pty.spawn([sys.executable, str(REPOSITORY / "tools" / "demo.py"), *sys.argv[1:]], keep)
    text = VIEW.sub(_one_frame, shown.decode(errors="replace")).replace("\r\n", "\n")
    lines = [_shorter(line) for line in text.split("\n")]
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=92, file=nowhere, force_terminal=True)
        console.print("[bold]$ python3 dev.py demo[/bold]")
        console.print(Text.from_ansi("\n".join(lines)))
        console.save_svg(str(REPOSITORY / "docs" / "demo.svg"), title="Blobark")
    return os.waitstatus_to_exitcode(status)


def _one_frame(view: re.Match[str]) -> str:
    """Return what the view showed when two thirds of the run were done."""
    frames = re.split(r"(?:\r|\x1b\[2K|\x1b\[1A|\x1b\[\?25[lh])+(?!\n)", view[0])
    seen = [frame.strip("\r\n") for frame in frames if frame.strip()]
    return seen[len(seen) * 2 // 3] + "\n" if seen else ""


def _shorter(line: str) -> str:
    """Take this checkout's own path out of a line; the frame of a table stays where it is."""
    path = f"{REPOSITORY}/"
    if path not in line:
        return line
    line = line.replace(path, "", 1)
    return f"{line[:-1]}{' ' * len(path)}{line[-1]}" if line.endswith("│") else line


if __name__ == "__main__":
    sys.exit(main())
