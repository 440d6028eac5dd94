"""Command lines without the price of starting Python: a process that has imported everything forks for each of them.

Every run is a process of its own, with its own exit code, output, environment and working folder; several may run at
once. It costs a tenth of a start. A child may give up being root, or most of its memory, before it begins; whoever it
becomes need not be able to read this checkout.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import resource
import selectors
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

REPOSITORY = Path(__file__).resolve().parent.parent
NOBODY = 65534
NOBODYS_GROUP = 4321
"""Of which nobody is, too."""
TIMEOUT_S = 110.0
MOST_REQUEST_BYTES = 1 << 16


class Forking:
    """The process that forks; it starts when it is first needed."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None

    def __enter__(self) -> Forking:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None and self._control is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._server.pid, 9)
            self._server.wait()
            self._control.close()

    def run(
        self,
        command: str,
        *options: str,
        nobody: bool = False,
        powerless: bool = False,
        memory_bytes: int = 0,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run `blobark COMMAND OPTIONS`, or only `blobark OPTIONS` where the command is "".

        As nobody, or stopped by permissions, if so told (and if root runs the tests), in so much memory if not 0;
        `environment` is added to that of this process, whose current folder is the usual one.
        """
        request: dict[str, Any] = {"command": command, "options": options, "memory_bytes": memory_bytes}
        request["uid"] = NOBODY if nobody and os.geteuid() == 0 else 0
        request["environment"] = {**os.environ, **(environment or {})}
        request["powerless"] = powerless
        request["cwd"] = str(cwd or Path.cwd())
        message = json.dumps(request).encode()
        assert len(message) <= MOST_REQUEST_BYTES
        answer, end = os.pipe()
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, open(answer, "rb"):
            with open(end, "wb"):
                socket.send_fds(self._started(), [message], [out.fileno(), err.fileno(), end])
            code = _number_from(answer, f"{command} {options}")
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess([command, *options], code, out.read(), err.read())

    def _started(self) -> socket.socket:
        if self._control is None:
            # A message each, so that whole requests may come from several threads.
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            command = [sys.executable, "-m", "tests.forked", str(theirs.fileno())]
            with theirs:
                self._server = subprocess.Popen(
                    command,
                    cwd=REPOSITORY,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                    pass_fds=[theirs.fileno()],
                )
        return self._control


def _number_from(descriptor: int, what: str) -> int:
    """Return the exit code that the process that forks tells."""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        assert selector.select(TIMEOUT_S), f"{what} hangs"
    told = os.read(descriptor, 100)
    assert told, f"{what}: the process that forks is gone"
    return int(told)


def _import_everything() -> None:
    """Import all of Blobark and run one restore, so that no child has to open a file of Python's any more."""
    import blobark
    from blobark.cli import main
    from tests.forge import Forge
    from tests.powerless import lay_down_powers  # noqa: F401
    from tests.runs import Workspace

    for module in pkgutil.walk_packages(blobark.__path__, "blobark."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder, "work"), Path(folder, "source"))
        forge = Forge(workspace.store)
        forge.snapshot(forge.file("a"))
        assert main(["--config", str(workspace.config), "--quiet"], command="restore") == 0


def _serve(control: socket.socket) -> None:
    """Fork for each request until there are no more; tell each how its run ended."""
    _import_everything()
    with selectors.DefaultSelector() as selector:
        selector.register(control, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is control:
                    message, descriptors, _, _ = socket.recv_fds(control, MOST_REQUEST_BYTES, 3)
                    if not message:
                        return
                    _begin(selector, json.loads(message), descriptors)
                else:
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    pid, answer = key.data
                    os.write(answer, b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                    os.close(answer)


def _begin(selector: selectors.BaseSelector, request: dict[str, Any], descriptors: list[int]) -> None:
    """Fork for one run; `descriptors` are its output, its errors, and where its end is to be told."""
    out, err, answer = descriptors
    pid = os.fork()
    if pid == 0:
        for key in list(selector.get_map().values()):  # what belongs to other runs
            for descriptor in (key.fd, *(key.data or ())[1:]):
                os.close(descriptor)
        selector.close()
        os.close(answer)
        _run(request, out, err)
    os.close(out)
    os.close(err)
    selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, answer))


def _run(request: dict[str, Any], out: int, err: int) -> NoReturn:
    from blobark.cli import main
    from tests.powerless import lay_down_powers

    for descriptor, opened in ((1, out), (2, err)):
        os.dup2(opened, descriptor)
        os.close(opened)
    os.environ.clear()
    os.environ.update(request["environment"])
    time.tzset()
    os.chdir(request["cwd"])
    if request["memory_bytes"]:
        resource.setrlimit(resource.RLIMIT_AS, (request["memory_bytes"], request["memory_bytes"]))
    if request["powerless"]:
        lay_down_powers()
    if request["uid"]:
        os.setgroups([NOBODYS_GROUP])
        os.setgid(request["uid"])
        os.setuid(request["uid"])
    code = 1
    try:
        code = main(request["options"], command=request["command"] or None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as control:
        _serve(control)
