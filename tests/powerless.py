"""Runs a command that permissions stop, even as root: `python tests/powerless.py COMMAND...`.

Root is stopped by no mode bits because of two capabilities; without them it is a user like any other.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

from tests.runs import Workspace

PR_CAPBSET_DROP = 24
CAPABILITY_VERSION = 0x20080522
POWERS = (1, 2)
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH."""


class Powerless(Workspace):
    """A workspace whose runs are stopped by permissions."""

    def execute(self, name: str, *options: str) -> subprocess.CompletedProcess[bytes]:
        """Run a command in a fork, and only return how that ended."""
        config = ("--config", str(self.config))
        return self.forking.run(name, *config, *options, environment=self.environment, powerless=True)

    def command(self, name: str, *options: str) -> list[str]:
        """Return the command line of a script."""
        plain = super().command(name, *options)
        return [plain[0], "-m", "tests.powerless", *plain]


def lay_down_powers() -> None:
    """Be stopped by permissions from now on: this process (which has one thread), and whatever it starts."""
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    head = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0)
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable: the low 32 bits, then the high ones
    codes = [libc.prctl(PR_CAPBSET_DROP, power, 0, 0, 0) for power in POWERS]
    codes.append(libc.capget(head, sets))
    for place in range(3):
        sets[place] &= ~sum(1 << power for power in POWERS) & 0xFFFFFFFF
    codes.append(libc.capset(head, sets))
    if any(codes):
        raise OSError(ctypes.get_errno(), "root cannot lay down its powers here")


def main(command: list[str]) -> None:
    lay_down_powers()
    os.execv(command[0], command)


if __name__ == "__main__":
    main(sys.argv[1:])
