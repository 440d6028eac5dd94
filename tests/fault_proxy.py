"""A real HTTP proxy on loopback that does harm by a script, for tests against a real server behind it.

    with FaultProxy(azurite.port) as proxy:
        proxy.add(answer(503, retry_after_s=1, times=3), lose_answer(method="PUT"))
        store = AzureStore.from_connection_string(proxy.rewire(azurite.connection_string), container)
        ...
        assert proxy.requests["PUT"] == 5

Each request takes the first fault of the script that is for its method and address and has not fired often enough.
When the block ends without an error, a fault that has not fired as often as it says fails the test.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import BinaryIO

LONGEST_HANG_S = 60.0


@dataclass
class Fault:
    """One harm. `where` is a part of the address, `holds` of the body; the first `skip` that fit pass unharmed."""

    kind: str
    times: int = 1
    method: str = ""
    where: str = ""
    holds: bytes = b""
    skip: int = 0
    status: int = 0
    code: str = ""
    retry_after_s: int | None = None
    seconds: float = 0.0
    old: bytes = b""
    new: bytes = b""
    action: Callable[[], object] | None = None
    seen: int = 0
    fired: int = 0

    def fits(self, request: Message) -> bool:
        return self.method in ("", request.method) and self.where in request.target and self.holds in request.body


def answer(status: int, code: str = "", *, retry_after_s: int | None = None, **which: object) -> Fault:
    """Answer with an error, and don't ask the server at all."""
    return _fault("answer", which, status=status, code=code, retry_after_s=retry_after_s)


def lose_answer(**which: object) -> Fault:
    """Let the server do the work, then break the connection without a word."""
    return _fault("lose_answer", which)


def cut_request(**which: object) -> Fault:
    """Break both connections when half of the request's body is through."""
    return _fault("cut_request", which)


def cut_answer(**which: object) -> Fault:
    """Break the connection when half of the answer's body is through."""
    return _fault("cut_answer", which)


def flip_request(**which: object) -> Fault:
    """Change a byte in the middle of the request's body."""
    return _fault("flip_request", which)


def resize_request(new: bytes, **which: object) -> Fault:
    """Send another body and its length in place of the request's; needs a SAS, as an account's key signs the length."""
    return _fault("resize_request", which, new=new)


def change_address(old: bytes, new: bytes, **which: object) -> Fault:
    """Replace a part of the request's address, or of its other headers."""
    return _fault("change_address", which, old=old, new=new)


def meanwhile(action: Callable[[], object], **which: object) -> Fault:
    """Do something before the request goes on."""
    return _fault("meanwhile", which, action=action)


def flip_answer(**which: object) -> Fault:
    """Change a byte in the middle of the answer's body."""
    return _fault("flip_answer", which)


def change_answer(old: bytes, new: bytes, **which: object) -> Fault:
    """Replace some bytes of the answer's body by as many others."""
    return _fault("change_answer", which, old=old, new=new)


def delay(seconds: float, **which: object) -> Fault:
    """Wait before the request goes on."""
    return _fault("delay", which, seconds=seconds)


def hang(**which: object) -> Fault:
    """Take the request and never answer."""
    return _fault("hang", which)


def _fault(kind: str, which: dict[str, object], **what: object) -> Fault:
    return Fault(kind, **which, **what)  # type: ignore[arg-type]


@dataclass
class Message:
    """The head and the body of a request or an answer, as they came over the line."""

    head: bytes
    body: bytes
    keep: bool = True
    target: str = ""
    method: str = ""

    def header(self, name: str) -> str:
        found = re.search(rb"\r\n" + name.encode() + rb":[ \t]*([^\r]*)", self.head, re.IGNORECASE)
        return found[1].decode() if found else ""

    def resize(self, body: bytes) -> None:
        length = b"\r\nContent-Length: %d" % len(body)
        self.head = re.sub(rb"\r\nContent-Length:[^\r]*", length, self.head, flags=re.IGNORECASE)
        self.body = body


@dataclass
class FaultProxy:
    """A proxy in front of 127.0.0.1:`server_port`. Counts requests, and bytes of bodies, by method; lists addresses."""

    server_port: int
    port: int = 0
    requests: Counter[str] = field(default_factory=Counter)
    bytes_in: Counter[str] = field(default_factory=Counter)
    bytes_out: Counter[str] = field(default_factory=Counter)
    log: list[tuple[str, str, int]] = field(default_factory=list)
    """Method, address and bytes of the body of each request."""
    targets: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._open: set[socket.socket] = set()
        self._closing = threading.Event()
        self._listener: socket.socket | None = None

    def __enter__(self) -> FaultProxy:
        self._listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        self._stop_listening()
        if error is None:
            silent = [fault for fault in self._faults if fault.fired < fault.times]
            assert not silent, f"these faults never fired, or not often enough: {silent}"

    def answered(self, request: Message) -> bytes:
        """Return an answer that the server is not asked for, b"" for none: for proxies that play something."""
        return b""

    def altered(self, request: Message, reply: Message) -> Message:
        """Return the answer to pass on: for proxies that play something."""
        return reply

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def rewire(self, connection_string: str) -> str:
        """Return a connection string that leads through the proxy."""
        return re.sub(rf"(127\.0\.0\.1):{self.server_port}\b", rf"\1:{self.port}", connection_string)

    def add(self, *faults: Fault) -> None:
        """Put faults at the end of the script."""
        with self._lock:
            self._faults += faults

    def reset_counts(self) -> None:
        with self._lock:
            for counter in (self.requests, self.bytes_in, self.bytes_out):
                counter.clear()
            self.log.clear()
            self.targets.clear()

    def logged(self, method: str, where: str) -> list[int]:
        """Return the bytes in the body of each request of this kind."""
        with self._lock:
            return [size for verb, target, size in self.log if verb == method and where in target]

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Refuse connections, and break those that are open, until the block ends."""
        self._stop_listening()
        try:
            yield
        finally:
            self._listen()

    def _listen(self) -> None:
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _stop_listening(self) -> None:
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        server = socket.create_connection(("127.0.0.1", self.server_port))
        for connection in (client, server):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._open |= {client, server}
        try:
            from_client: BinaryIO = client.makefile("rb")
            from_server: BinaryIO = server.makefile("rb")
            while (request := read_message(from_client)) is not None:
                if not self._pass_on(request, client, server, from_server):
                    break
        except OSError:
            pass
        finally:
            with self._lock:
                self._open -= {client, server}
            for connection in (client, server):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
                connection.close()

    def _pass_on(self, request: Message, client: socket.socket, server: socket.socket, from_server: BinaryIO) -> bool:
        """Answer one request; False when the connection is over."""
        fault = self._next_fault(request)
        kind = fault.kind if fault else ""
        if fault and kind == "answer":
            client.sendall(error_answer(fault, request.method))
            return True
        if kind == "hang":
            self._closing.wait(LONGEST_HANG_S)
            return False
        if fault and kind == "delay":
            time.sleep(fault.seconds)
        if fault and fault.action is not None:
            fault.action()
        if fault and kind == "resize_request":
            request.resize(fault.new)
        if fault and kind == "change_address":
            request.head = request.head.replace(fault.old, fault.new)
        if kind == "cut_request":
            server.sendall(request.head + request.body[: len(request.body) // 2])
            return False
        own = self.answered(request)
        if own:
            client.sendall(own)
            return True
        server.sendall(request.head + (flipped(request.body) if kind == "flip_request" else request.body))
        reply = read_message(from_server, request.method)
        if reply is None or kind == "lose_answer":
            return False
        reply = self.altered(request, reply)
        with self._lock:
            self.bytes_out[request.method] += len(reply.body)
        if fault and kind == "change_answer":
            reply.body = reply.body.replace(fault.old, fault.new)
        if kind == "cut_answer":
            client.sendall(reply.head + reply.body[: len(reply.body) // 2])
            return False
        client.sendall(reply.head + (flipped(reply.body) if kind == "flip_answer" else reply.body))
        return reply.keep

    def _next_fault(self, request: Message) -> Fault | None:
        with self._lock:
            self.requests[request.method] += 1
            self.bytes_in[request.method] += len(request.body)
            self.log.append((request.method, request.target, len(request.body)))
            self.targets.append(request.target)
            for fault in self._faults:
                if fault.fired < fault.times and fault.fits(request):
                    fault.seen += 1
                    if fault.seen > fault.skip:
                        fault.fired += 1
                        return fault
        return None


def read_message(stream: BinaryIO, answer_to: str = "") -> Message | None:
    """Read a request, or the answer to a request with the method `answer_to`; None at the end of the connection."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = stream.readline()
        if not line:
            return None
        head += line
    message = Message(head, b"")
    first = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    if not answer_to:
        message.method, message.target = first[0], first[1]
    elif answer_to == "HEAD" or first[1] in ("204", "304"):
        return message
    if "chunked" in message.header("Transfer-Encoding").lower():
        message.body = read_chunks(stream)
    elif length := message.header("Content-Length"):
        message.body = stream.read(int(length))
    elif answer_to:
        message.body, message.keep = stream.read(), False
    message.keep = message.keep and "close" not in message.header("Connection").lower()
    return message


def read_chunks(stream: BinaryIO) -> bytes:
    """Read a chunked body and return it as it came, with the sizes of its chunks."""
    body = b""
    while True:
        line = stream.readline()
        size = int(line.split(b";")[0], 16)
        body += line + stream.read(size + 2)
        if size == 0:
            return body


def flipped(body: bytes) -> bytes:
    middle = len(body) // 2
    return body[:middle] + bytes([body[middle] ^ 1]) + body[middle + 1 :]


def error_answer(fault: Fault, method: str) -> bytes:
    """Return an answer as Azure would give it."""
    text = f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{fault.code}</Code><Message>no</Message></Error>'
    body = text.encode() if fault.code and method != "HEAD" else b""
    lines = [f"HTTP/1.1 {fault.status} Nope", f"Content-Length: {len(body)}", "Content-Type: application/xml"]
    if fault.code:
        lines.append(f"x-ms-error-code: {fault.code}")
    if fault.retry_after_s is not None:
        lines.append(f"Retry-After: {fault.retry_after_s}")
    return "\r\n".join([*lines, "", ""]).encode() + body
