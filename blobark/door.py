"""The door of all commands: `blobark`, `python -m blobark`, build_index.py, save_blob.py and restore_blob.py.

It opens `blobark.cli`, or says in one line what is missing when they run where the libraries are not installed. Ctrl-C
while it opens, which takes a moment, ends the process without a word. So it imports nothing that takes time before it
is ready for that, nothing but the standard library, and runs on any Python 3.
"""

import gc
import os
import sys

LIBRARIES = (
    "awscrt",
    "azure",
    "blake3",
    "certifi",
    "cryptography",
    "msgspec",
    "pathspec",
    "psutil",
    "pyfastcdc",
    "rich",
    "shtab",
    "yaml",
)
"""What Blobark imports; tests/test_tidy.py holds it against the code."""

INTERRUPTED = 130


def console() -> None:
    """Run the command `blobark`."""
    sys.exit(run())


def run(command: str = "") -> int:
    """Run the arguments of this process, of one command of `blobark` if it is named; return the exit code."""
    try:
        return _run(command)
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(command: str) -> int:
    import signal

    # Raised while a library is imported, KeyboardInterrupt may come out as another error, or get lost.
    usual = signal.getsignal(signal.SIGINT)
    if usual is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    problem = _problem()
    if problem:
        name = os.path.basename(sys.argv[0]) if command else "blobark"
        how = f".venv/bin/python {name} ..." if command else ".venv/bin/blobark ..."
        try:
            print(f"{name}: {problem}: run `python3 dev.py setup`, then `{how}`", file=sys.stderr, flush=True)
        except OSError:  # its reader has left
            pass
        return 2
    gc.disable()  # of what is loaded now nothing is garbage; `cli` turns it on again
    from blobark.cli import main

    signal.signal(signal.SIGINT, usual)
    return main(command=command or None)


def _problem() -> str:
    if sys.version_info < (3, 11):
        return f"Blobark needs Python 3.11 or newer, and this is {sys.version.split()[0]}"
    import importlib.util

    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    return f"Blobark's libraries are not installed here ({', '.join(missing)})" if missing else ""
