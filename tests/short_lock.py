"""Runs a script whose locks in a store last for so many seconds: `python -m tests.short_lock SECONDS SCRIPT...`."""

from __future__ import annotations

import runpy
import sys

from tests.runs import Started


class ShortLock(Started):
    """A workspace whose runs lose the store's lock soon: after 15 s on Azure, which is the least, or 2 s."""

    @property
    def lock_s(self) -> float:
        return 15.0 if self.settings["store"] == "azure" else 2.0

    def command(self, name: str, *options: str) -> list[str]:
        """Return the command line of a script."""
        python, *rest = super().command(name, *options)
        return [python, "-m", "tests.short_lock", str(self.lock_s), *rest]


def main(lock_s: float, command: list[str]) -> None:
    from blobark.stores.azure import AzureStore
    from blobark.stores.folder import FolderStore

    AzureStore.lock_s = FolderStore.lock_s = lock_s
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")


if __name__ == "__main__":
    main(float(sys.argv[1]), sys.argv[2:])
