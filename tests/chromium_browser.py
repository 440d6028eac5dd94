"""A real headless Chromium, which dev.py has installed; a missing one is an error and never a skipped test."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

TESTS = Path(__file__).resolve().parent
# What keeps it from calling home, and from needing a sandbox that containers do not allow.
FLAGS = ["--no-sandbox", "--no-zygote", "--disable-gpu", "--disable-background-networking", "--disable-sync"]


def folder() -> Path:
    """Return where Chromium lies."""
    version = json.loads((TESTS / "chromium" / "package.json").read_text())["dependencies"]["@sparticuz/chromium"]
    found = TESTS.parent / ".tools" / f"chromium-{version}"
    if not (found / "chromium").exists():
        raise RuntimeError(f"Chromium {version} is not installed: `python3 dev.py check` installs it")
    return found


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Run it."""
    here = folder()
    with tempfile.TemporaryDirectory(prefix="blobark-chromium-") as home, sync_playwright() as playwright:
        environment: dict[str, str | float | bool] = {
            **os.environ,
            "HOME": home,
            "XDG_CACHE_HOME": home,
            "LD_LIBRARY_PATH": str(here / "lib"),
            "FONTCONFIG_FILE": str(here / "fonts.conf"),
        }
        browser = playwright.chromium.launch(executable_path=here / "chromium", env=environment, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()
