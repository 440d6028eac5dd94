"""Command lines without the price of starting Python: a process that has imported everything forks for each of them.

Every run is a process of its own, with its own exit code and output. Some hundred of them in one test file take
seconds. A child may give up being root, or most of its memory, before it begins; whoever it becomes need not be able
to read this checkout.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

REPOSITORY = Path(__file__).resolve().parent.parent
NOBODY = 65534
TIMEOUT_S = 60.0


class Forking:
    """The process that forks; one run at a time."""

    def __enter__(self) -> Forking:
        command = [sys.executable, str(Path(__file__).resolve())]
        self._server = subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._server.pid, 9)
        self._server.communicate()

    def run(
        self,
        command: str,
        *options: str,
        nobody: bool = False,
        memory_bytes: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run `blobark COMMAND`; as nobody if so told (and if root runs the tests), in so much memory if not 0."""
        assert self._server.stdin
        assert self._server.stdout
        uid = NOBODY if nobody and os.geteuid() == 0 else 0
        with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
            request: dict[str, Any] = {"command": command, "options": options, "uid": uid, "memory_bytes": memory_bytes}
            request["environment"] = dict(environment or {})
            line = json.dumps({**request, "out": out.name, "err": err.name})
            self._server.stdin.write(f"{line}\n".encode())
            self._server.stdin.flush()
            ready, _, _ = select.select([self._server.stdout], [], [], TIMEOUT_S)
            assert ready, f"{command} {options} hangs"
            code = int(self._server.stdout.readline())
            return subprocess.CompletedProcess([command, *options], code, out.read(), err.read())


def _import_everything() -> None:
    """Run one restore here, so that no child has to open a file of Python's any more."""
    import blobark.stores.azure
    import blobark.stores.azure_control
    import blobark.stores.azure_rest  # noqa: F401
    from blobark.cli import main
    from tests.forge import Forge
    from tests.runs import Workspace

    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder, "work"), Path(folder, "source"))
        forge = Forge(workspace.store)
        forge.snapshot(forge.file("a"))
        assert main(["--config", str(workspace.config), "--quiet"], command="restore") == 0


def _serve() -> None:
    _import_everything()
    for line in sys.stdin.buffer:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _run(request)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run(request: dict[str, Any]) -> NoReturn:
    from blobark.cli import main

    os.environ.update(request["environment"])
    for descriptor, name in ((0, os.devnull), (1, request["out"]), (2, request["err"])):
        opened = os.open(name, os.O_RDWR)
        os.dup2(opened, descriptor)
        os.close(opened)
    if request["memory_bytes"]:
        resource.setrlimit(resource.RLIMIT_AS, (request["memory_bytes"], request["memory_bytes"]))
    if request["uid"]:
        os.setgroups([])
        os.setgid(request["uid"])
        os.setuid(request["uid"])
    code = 1
    try:
        code = main(request["options"], command=request["command"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.path[0] = str(REPOSITORY)
    _serve()
