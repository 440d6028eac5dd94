"""Run a command and print how it ended and the most memory it held: {"code": 0, "peak_rss_bytes": 30000000}.

    python -S tests/peak.py COMMAND [ARGUMENT ...]

A process of its own, since Linux counts what the parent held when it forked as the child's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence


def peak_rss_bytes(command: Sequence[str]) -> int:
    """Return the most memory that a command held; it must end with 0."""
    done = subprocess.run([sys.executable, "-S", __file__, *command], stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["code"] == 0, command
    return int(found["peak_rss_bytes"])


if __name__ == "__main__":
    child = os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ)
    _, status, usage = os.wait4(child, 0)
    unit = 1 if sys.platform == "darwin" else 1024
    print(json.dumps({"code": os.waitstatus_to_exitcode(status), "peak_rss_bytes": usage.ru_maxrss * unit}))
