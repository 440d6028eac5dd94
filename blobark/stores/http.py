"""`Http`: HTTP/1.1 requests to one server, over connections that stay open.

What a backup of small files does most is send 4 KiB and read "201 Created". That takes a library of Python 0.3 ms and
more of CPU, obstore 0.13, and a socket 0.02; so this is the one part of the network that is not left to a library.
It knows what a client of one storage service needs, and no more: one request at a time on a connection, bodies of known
length out, answers in chunks or of known length, TLS by `ssl`, a proxy of the environment. Nothing is repeated and no
redirect followed.

A connection is used by one thread at a time; one that the server has closed while nobody used it is not used again.
Every wait for the other side, to take a byte or to send one, ends after the read timeout.
"""

from __future__ import annotations

import base64
import os
import select
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple
from urllib.parse import unquote, urlsplit

import certifi
import msgspec

from blobark.errors import ConfigError
from blobark.model import Data
from blobark.stores.base import POURED_BYTES, Take
from metrics.stages import Stages

Trouble = Literal["connect", "timeout", "broken", "damaged"]

SMALL_BYTES = 64 * 1024
"""A body up to this size is sent in one piece with its head, and an answer's read in one piece with its own."""
SENT_AT_ONCE_BYTES = 1024 * 1024
LONGEST_HEAD_BYTES = 64 * 1024
IDLE_S = 0.5
"""A connection that was unused for longer is looked at before it is used: the server may have closed it."""

_NO_BODY = {204, 304}


class NoAnswer(Exception):
    """There is no answer, or none that can be read. Has no text: what was asked for may hold a secret."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__()
        self.trouble = trouble


class _NotTaken(Exception):
    """What somebody has raised to whom an answer was given as it came."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class Answer(msgspec.Struct, gc=False):
    """A status, the head as it came and in small letters, and a body."""

    status: int
    head: bytes
    lower: bytes
    body: Data = b""
    is_poured: bool = False
    """Whether the body has been taken as it came."""

    def header(self, name: bytes) -> str:
        """Return a header's value, "" for none; its name is given in small letters."""
        start = self.lower.find(b"\r\n" + name + b":")
        if start < 0:
            return ""
        start += len(name) + 3
        return self.head[start : self.head.index(b"\r\n", start)].strip().decode("latin-1")

    def headers(self, prefix: bytes) -> dict[str, str]:
        """Return the headers whose names begin so, by the rest of their names, in small letters."""
        found = {}
        for line in self.head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower().startswith(prefix):
                found[name[len(prefix) :].lower().decode("latin-1")] = value.strip().decode("latin-1")
        return found


class Poured(NamedTuple):
    """What a body of status 206 and of this length is given to as it comes, up to `POURED_BYTES` at a time."""

    size_bytes: int
    take: Take


@dataclass(slots=True)
class _Connection:
    socket: socket.socket
    used_s: float

    def is_dead(self) -> bool:
        """Whether there is something to read where nothing was asked for: the end, mostly."""
        return time.monotonic() - self.used_s > IDLE_S and bool(_readable(self.socket))


class Http:
    """The connections to a server, made as they are needed. May be used from many threads at once."""

    def __init__(
        self,
        endpoint: str,
        *,
        connect_timeout_s: float,
        read_timeout_s: float,
        roots: str = "",
        stages: Stages | None = None,
    ) -> None:
        """`endpoint` is `http(s)://host[:port]`; `roots` a file or folder of certificates to trust, "" for the usual.

        `stages` gets to know how long the rest of an answer takes, when its first bytes have come.

        Raises:
            ConfigError: the certificates cannot be read, or the proxy is of a kind that is not understood.
        """
        url = urlsplit(endpoint)
        self._host = url.hostname or ""
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._tls = _context(roots) if url.scheme == "https" else None
        self._proxy = _proxy_for(url.scheme, url.netloc)
        self._connect_timeout_s = connect_timeout_s
        self._read_timeout_s = read_timeout_s
        self._stages = stages or Stages(1)
        self._idle: list[_Connection] = []
        login = self._proxy.login if self._proxy and not self._tls else ""
        self._always = f" HTTP/1.1\r\nHost: {url.netloc}\r\n{login}"
        # A proxy is asked for whole addresses, unless it only passes the bytes of TLS on.
        self._place = f"http://{url.netloc}" if self._proxy and not self._tls else ""

    def ask(self, method: str, target: str, headers: str, body: Data = b"", poured: Poured | None = None) -> Answer:
        """Make a request, and return the answer, whatever its status.

        `target` is the path with its query; `headers` has lines that end in CR LF. Both are ASCII without controls
        of their own: who calls has seen to that. What `poured` raises comes through.

        Raises:
            NoAnswer: there was none in time, or it came damaged.
        """
        length = f"Content-Length: {len(body)}\r\n" if body or method == "PUT" else ""
        head = f"{method} {self._place}{target}{self._always}{headers}{length}\r\n".encode()
        connection = self._connection()
        is_whole = False
        try:
            _send(connection.socket, head, body)
            answer, is_whole = _receive(connection.socket, method, self._stages, poured)
        except _NotTaken as failed:
            raise failed.error from None
        except TimeoutError:
            raise NoAnswer("timeout") from None
        except OSError:
            raise NoAnswer("broken") from None
        except ValueError:
            raise NoAnswer("damaged") from None
        finally:
            if is_whole:
                connection.used_s = time.monotonic()
                self._idle.append(connection)
            else:  # also when a signal has come between
                connection.socket.close()
        return answer

    def close(self) -> None:
        """Close the connections that nobody uses."""
        while self._idle:
            self._idle.pop().socket.close()

    def _connection(self) -> _Connection:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return _Connection(self._connect(), time.monotonic())
            if not connection.is_dead():
                return connection
            connection.socket.close()

    def _connect(self) -> socket.socket:
        address = (self._proxy.host, self._proxy.port) if self._proxy else (self._host, self._port)
        try:
            made = socket.create_connection(address, self._connect_timeout_s)
        except (OSError, UnicodeError):  # a name with an empty or too long part
            raise NoAnswer("connect") from None
        try:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._tls is not None:
                if self._proxy:
                    self._tunnel(made, self._proxy)
                made = self._tls.wrap_socket(made, server_hostname=self._host)
            made.settimeout(self._read_timeout_s)
        except (OSError, ValueError):
            made.close()
            raise NoAnswer("connect") from None
        except BaseException:
            made.close()
            raise
        return made

    def _tunnel(self, made: socket.socket, proxy: _Proxy) -> None:
        host = f"[{self._host}]" if ":" in self._host else self._host
        place = f"{host}:{self._port}"
        _send(made, f"CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n{proxy.login}\r\n".encode(), b"")
        answer, _ = _receive(made, "CONNECT", self._stages)
        if answer.status != 200:
            raise ConnectionError


@dataclass(frozen=True, slots=True)
class _Proxy:
    host: str
    port: int
    login: str
    """A line of the head, or ""."""


def _proxy_for(scheme: str, place: str) -> _Proxy | None:
    """Return the proxy that the environment names for an address."""
    if sys.platform != "darwin" and not any(name.lower().endswith("_proxy") for name in os.environ):
        return None
    from urllib.request import getproxies, proxy_bypass  # late: 5 ms, and most machines have none

    named = "" if proxy_bypass(place) else getproxies().get(scheme, "")
    if not named:
        return None
    url = urlsplit(named if "//" in named else f"http://{named}")
    try:
        port = url.port or 80
    except ValueError:
        port = 0
    if url.scheme != "http" or not url.hostname or not port:
        raise ConfigError(
            f"the environment names a proxy for {scheme} that is not of the form http://host:port",
            f"see {scheme}_proxy; no_proxy={place} does without",
        )
    login = f"{unquote(url.username or '')}:{unquote(url.password or '')}"
    encoded = base64.b64encode(login.encode()).decode()
    return _Proxy(url.hostname, port, f"Proxy-Authorization: Basic {encoded}\r\n" if login != ":" else "")


def _context(roots: str) -> ssl.SSLContext:
    place = roots or certifi.where()
    try:
        if os.path.isdir(place):
            return ssl.create_default_context(capath=place)
        return ssl.create_default_context(cafile=place)
    except OSError as error:
        raise ConfigError(
            f"the certificates in {place} cannot be read ({error.strerror})", "see REQUESTS_CA_BUNDLE and SSL_CERT_FILE"
        ) from None


def _readable(connection: socket.socket) -> list[tuple[int, int]]:
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return poll.poll(0)


def _send(connection: socket.socket, head: bytes, body: Data) -> None:
    """Send a request. A server that has answered and closed before it has read all of it ends the sending only."""
    if len(body) <= SMALL_BYTES:
        connection.sendall(b"".join((head, body)))
        return
    try:
        connection.sendall(head)
        view = memoryview(body)
        while view:
            # Each piece has the read timeout to itself: what moves, however slowly, does not hang.
            view = view[connection.send(view[:SENT_AT_ONCE_BYTES]) :]
    except (BrokenPipeError, ConnectionResetError):
        if not _readable(connection):
            raise


def _receive(
    connection: socket.socket, method: str, stages: Stages, poured: Poured | None = None
) -> tuple[Answer, bool]:
    """Return an answer, and whether the connection can be used again."""
    data = _some(connection)
    while True:
        while (end := data.find(b"\r\n\r\n")) < 0:
            if len(data) > LONGEST_HEAD_BYTES:
                raise ValueError
            data += _some(connection)
        status = int(data[9:12])
        if status >= 200:
            break
        data = data[end + 4 :] or _some(connection)  # "100 Continue", which nobody asked for
    if not data.startswith(b"HTTP/1."):
        raise ValueError
    head = data[: end + 2]
    answer = Answer(status, head, head.lower())
    rest = data[end + 4 :]
    keep = data.startswith(b"HTTP/1.1") and b"\r\nconnection: close\r\n" not in answer.lower
    if method in ("HEAD", "CONNECT") or status in _NO_BODY:
        return answer, keep and not rest
    if length := answer.header(b"content-length"):
        size = int(length)
        if len(rest) > size:
            raise ValueError
        if poured is not None and (status, size) == (206, poured.size_bytes):
            _pour(connection, rest, poured, stages)
            answer.is_poured = True
            return answer, keep
        if len(rest) == size:
            answer.body = rest
            return answer, keep
        since_ns = stages.now()
        answer.body = _body(connection, rest, size)
    elif answer.header(b"transfer-encoding").lower() == "chunked":
        since_ns = stages.now()
        answer.body = b"".join(_chunks(connection, rest))
    else:
        since_ns = stages.now()
        answer.body, keep = _until_the_end(connection, rest), False
    stages.received(since_ns)
    return answer, keep


def _some(connection: socket.socket) -> bytes:
    data = connection.recv(SMALL_BYTES)
    if not data:
        raise ConnectionError
    return data


def _body(connection: socket.socket, begun: bytes, size: int) -> memoryview:
    body = memoryview(bytearray(size))
    body[: len(begun)] = begun
    filled = len(begun)
    while filled < size:
        got = connection.recv_into(body[filled:])
        if not got:
            raise ConnectionError
        filled += got
    return body


def _pour(connection: socket.socket, begun: bytes, poured: Poured, stages: Stages) -> None:
    buffer = memoryview(bytearray(min(POURED_BYTES, poured.size_bytes)))
    buffer[: len(begun)] = begun
    filled, left = len(begun), poured.size_bytes
    while left:
        since_ns = stages.now()
        piece = buffer[:left]
        while filled < len(piece):
            got = connection.recv_into(piece[filled:])
            if not got:
                raise ConnectionError
            filled += got
        stages.received(since_ns)
        try:
            poured.take(piece)
        except Exception as error:  # noqa: BLE001 - it is none of the connection's
            raise _NotTaken(error) from None
        left -= filled
        filled = 0


def _chunks(connection: socket.socket, data: bytes) -> Iterator[bytes]:
    while True:
        while (end := data.find(b"\r\n")) < 0:
            if len(data) > LONGEST_HEAD_BYTES:
                raise ValueError
            data += _some(connection)
        size = int(data[:end].partition(b";")[0], 16)
        data = data[end + 2 :]
        if size == 0:
            break
        whole = bytearray(data)
        while len(whole) < size + 2:
            whole += _some(connection)
        yield bytes(whole[:size])
        if whole[size : size + 2] != b"\r\n":
            raise ValueError
        data = bytes(whole[size + 2 :])
    while not data.endswith(b"\r\n"):  # trailers are nobody's
        data += _some(connection)


def _until_the_end(connection: socket.socket, data: bytes) -> bytes:
    pieces = [data]
    while piece := connection.recv(SMALL_BYTES):
        pieces.append(piece)
    return b"".join(pieces)
