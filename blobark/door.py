"""The door of the scripts build_index.py, save_blob.py and restore_blob.py.

It opens `blobark.cli`, or says in one line what is missing when they run where the libraries are not installed.
So it imports nothing but the standard library, and runs on any Python 3.
"""

import importlib.util
import sys
from pathlib import Path

LIBRARIES = (
    "azure",
    "blake3",
    "certifi",
    "cryptography",
    "msgspec",
    "obstore",
    "pathspec",
    "psutil",
    "pyfastcdc",
    "rich",
    "urllib3",
    "yaml",
)
"""What Blobark imports; tests/test_tidy.py holds it against the code."""


def run(command: str) -> int:
    """Run one command of `blobark` with the arguments of this process; return the exit code."""
    problem = _problem()
    if problem:
        script = Path(sys.argv[0]).name
        print(f"{script}: {problem}: run `python3 dev.py setup`, then `.venv/bin/python {script} ...`", file=sys.stderr)
        return 2
    try:
        from blobark.cli import main
    except KeyboardInterrupt:
        return 130

    return main(command=command)


def _problem() -> str:
    if sys.version_info < (3, 11):
        return f"Blobark needs Python 3.11 or newer, and this is {sys.version.split()[0]}"
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    return f"Blobark's libraries are not installed here ({', '.join(missing)})" if missing else ""
