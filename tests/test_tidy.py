"""The house rules that no linter has: sizes, what the locks hold, and what a file must not name."""

from __future__ import annotations

import ast
import hashlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from blobark.door import LIBRARIES

ROOT = Path(__file__).resolve().parent.parent
PRODUCT = sorted(file for package in ("blobark", "metrics") for file in (ROOT / package).rglob("*.py"))

MODULE_LINES = 400
FUNCTION_LINES = 60
ONE_FILE = {"blobark/container/rescue.py"}
"""What people are to download as one file, with a decoder for zstd and a digest of its own."""

OPTIONAL: set[str] = set()
"""Libraries that blobark can do without: imported inside a function, by whoever asked for them."""


def functions(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the length in lines, without the docstring, and the place of every function of a module."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            documented = ast.get_docstring(node) is not None
            docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
            length = (node.end_lineno or 0) - node.lineno + 1 - docstring
            yield length, f"{file.relative_to(ROOT)}:{node.lineno} {node.name}"


def check_longest(what: str, limit: int, sizes: list[tuple[int, str]]) -> None:
    longest = sorted(sizes, reverse=True)[:5]
    print(f"longest {what}:", *(f"{length:5} {place}" for length, place in longest), sep="\n")
    assert longest[0][0] <= limit, f"look for the seam: a {what[:-1]} has at most {limit} lines"


def test_no_module_is_long() -> None:
    sizes = [(len(file.read_text().splitlines()), str(file.relative_to(ROOT))) for file in PRODUCT]
    check_longest("modules", MODULE_LINES, [size for size in sizes if size[1] not in ONE_FILE])


def test_no_function_is_long() -> None:
    check_longest("functions", FUNCTION_LINES, [size for file in PRODUCT for size in functions(file)])


def test_the_scripts_know_every_library_that_is_imported() -> None:
    imported = set()
    for file in PRODUCT:
        for node in ast.walk(ast.parse(file.read_bytes())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    # zstd is in `compression` of newer Pythons, and in `backports` for the others.
    ours = {"blobark", "metrics", "backports", "compression", *sys.stdlib_module_names, *OPTIONAL}
    assert imported - ours <= set(LIBRARIES)


def pins(name: str) -> dict[str, str]:
    """Return the version of every library in a list."""
    found = re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / name).read_text(), re.MULTILINE)
    return dict(found)


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^A-Za-z0-9._-]", text)[0].lower().replace(".", "-").replace("_", "-") for text in requirements}


def test_the_lists_hold_what_pyproject_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    product, dev = pins("requirements.lock"), pins("requirements-dev.lock")
    assert names(project["project"]["dependencies"]) <= product.keys(), "run `python3 dev.py lock`"
    assert names(project["dependency-groups"]["dev"]) <= dev.keys(), "run `python3 dev.py lock`"
    assert product.items() <= dev.items(), "run `python3 dev.py lock`"


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock", "requirements-uv.lock"])
def test_the_lists_name_no_place_and_have_hashes(name: str) -> None:
    lines = (ROOT / name).read_text().splitlines()
    strange = [line for line in lines if not re.match(r"#|[a-z0-9-]+==|    --hash=sha256:[0-9a-f]{64}", line)]
    assert strange == []
    assert "://" not in "".join(lines)


@pytest.mark.parametrize("name", ["azurite", "chromium"])
def test_what_npm_brings_comes_from_the_public_registry(name: str) -> None:
    packages = json.loads((ROOT / "tests" / name / "package-lock.json").read_text())["packages"]
    resolved = [package["resolved"] for name, package in packages.items() if name]
    assert resolved
    assert [url for url in resolved if not url.startswith("https://registry.npmjs.org/")] == []


def test_the_library_of_the_page_is_the_one_that_is_named() -> None:
    assets = ROOT / "metrics" / "page_assets"
    digest = hashlib.sha256((assets / "echarts.common.min.js").read_bytes()).hexdigest()
    assert f"sha256  {digest}\n" in (assets / "README.md").read_text()


def test_no_file_names_the_machine_it_was_written_on() -> None:
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    tracked = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
    homes = {"/root", str(ROOT), str(Path.home())} - {"/"}
    # `{tmp}/root/x` and `a/root/x` are no absolute paths.
    machine = re.compile(r"(?<![\w.})\]])(" + "|".join(map(re.escape, sorted(homes))) + r")/")
    found = []
    for name in filter(None, tracked):
        file = ROOT / name
        if not file.is_file():
            continue
        text = file.read_bytes()
        if b"\0" not in text:
            found += [f"{name}: {hit[0]}" for hit in machine.finditer(text.decode(errors="replace"))]
    assert found == []
