"""Runs a command that permissions stop, even as root: `python tests/powerless.py COMMAND...`.

Root is stopped by no mode bits because of two capabilities; without them it is a user like any other.
"""

from __future__ import annotations

import ctypes
import os
import sys

from tests.runs import Started

PR_CAPBSET_DROP = 24
POWERS = (1, 2)
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""


class Powerless(Started):
    """A workspace whose runs are stopped by permissions."""

    def command(self, name: str, *options: str) -> list[str]:
        """Return the command line of a script."""
        plain = super().command(name, *options)
        return [plain[0], "-m", "tests.powerless", *plain]


def main(command: list[str]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    for power in POWERS if os.geteuid() == 0 else ():
        if libc.prctl(PR_CAPBSET_DROP, power, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "root cannot lay down its powers here")
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
