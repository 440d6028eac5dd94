"""Requests over sockets, against servers that answer byte for byte what a test says."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobark.errors import ConfigError
from blobark.model import Data
from blobark.stores.base import POURED_BYTES
from blobark.stores.http import LONGEST_HEAD_BYTES, SENT_AT_ONCE_BYTES, Answer, Http, NoAnswer, Poured
from metrics.stages import RECEIVE, Stages

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

Script = Callable[[socket.socket], object]


class Server:
    """Takes connections one after the other; each is handed to the next script, the last one again and again."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = list(scripts)
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []
        self.connections = 0
        self.closed = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def read(self, connection: socket.socket) -> bool:
        """Read a request; return whether one came."""
        data = b""
        while b"\r\n\r\n" not in data:
            piece = connection.recv(65536)
            if not piece:
                return False
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        wanted = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")), 0)
        while len(body) < wanted:
            body += connection.recv(1 << 20)
        self.heads.append(head)
        self.bodies.append(body)
        return True

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            script = self.scripts[min(self.connections, len(self.scripts) - 1)]
            self.connections += 1
            with connection:
                try:
                    script(connection)
                except OSError:
                    pass  # the client has gone, as some of these tests want it
            self.closed.set()


@contextmanager
def answering(*answers: bytes, then_close: bool = False) -> Iterator[tuple[Server, Http]]:
    """Open a server that gives these answers on a connection, the last one again and again, and a client of it."""
    server = Server()

    def script(connection: socket.socket) -> None:
        number = 0
        while server.read(connection):
            connection.sendall(answers[min(number, len(answers) - 1)])
            number += 1
            if then_close:
                return

    server.scripts.append(script)
    with server:
        http = client(server.url)
        yield server, http
        http.close()


def client(url: str, read_timeout_s: float = 5.0) -> Http:
    return Http(url, connect_timeout_s=5.0, read_timeout_s=read_timeout_s)


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def shown(answer: Answer) -> tuple[int, bytes]:
    return answer.status, bytes(answer.body)


def test_requests_share_a_connection() -> None:
    with answering(OK) as (server, http):
        assert shown(http.ask("PUT", "/a?b", "x-one: 1\r\n", b"body")) == (200, b"ok")
        assert shown(http.ask("GET", "/", "")) == (200, b"ok")
        assert server.connections == 1
        assert server.bodies == [b"body", b""]
        host = server.url.removeprefix("http://").encode()
        assert server.heads[0] == b"PUT /a?b HTTP/1.1\r\nHost: " + host + b"\r\nx-one: 1\r\nContent-Length: 4"
        assert server.heads[1] == b"GET / HTTP/1.1\r\nHost: " + host


@pytest.mark.parametrize("size", [0, 1, 65536, 65537, SENT_AT_ONCE_BYTES, 3 * SENT_AT_ONCE_BYTES + 1])
def test_bodies_of_any_length_go_both_ways(size: int) -> None:
    body = os.urandom(size)
    with answering(b"HTTP/1.1 206 x\r\ncontent-length:%d\r\n\r\n%b" % (size, body)) as (server, http):
        for sent in (body, memoryview(body)):
            answer = http.ask("PUT", "/", "", sent)
            assert answer.body == body
        assert server.bodies == [body, body]
        assert server.connections == 1


@pytest.mark.parametrize(("size", "received"), [(0, 0), (4096, 0), (3_000_000, 1)])
def test_what_comes_after_the_first_bytes_is_timed_apart(size: int, received: int) -> None:
    stages = Stages(1)
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (size, bytes(size))) as (server, _):
        http = Http(server.url, connect_timeout_s=5.0, read_timeout_s=5.0, stages=stages)
        assert len(http.ask("GET", "/", "").body) == size
        http.close()
    assert stages.count(RECEIVE) == received
    assert (stages.received_ns > 0) == bool(received)


def test_what_is_poured_comes_while_it_comes() -> None:
    body, stages = os.urandom(2 * POURED_BYTES + 100), Stages(1)
    has_first = threading.Event()
    server = Server()

    def script(connection: socket.socket) -> None:
        while server.read(connection):
            connection.sendall(b"HTTP/1.1 206 x\r\nContent-Length: %d\r\n\r\n" % len(body) + body[:POURED_BYTES])
            assert has_first.wait(10)
            connection.sendall(body[POURED_BYTES:])

    server.scripts.append(script)
    taken: list[bytes] = []

    def take(piece: Data) -> None:
        taken.append(bytes(piece))
        has_first.set()

    with server:
        http = Http(server.url, connect_timeout_s=5, read_timeout_s=5, stages=stages)
        for _ in range(2):
            taken.clear()
            answer = http.ask("GET", "/", "", b"", Poured(len(body), take))
            assert (answer.status, answer.is_poured, answer.body) == (206, True, b"")
            assert b"".join(taken) == body
            assert [len(piece) for piece in taken] == [POURED_BYTES, POURED_BYTES, 100]
        assert server.connections == 1
        http.close()
    assert stages.count(RECEIVE) == 6


@pytest.mark.parametrize(("status", "length"), [(200, 9), (404, 9), (206, 8), (206, 10)])
def test_another_answer_than_was_hoped_for_is_poured_to_nobody(status: int, length: int) -> None:
    taken: list[object] = []
    with answering(b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n%b" % (status, length, bytes(length))) as (_, http):
        answer = http.ask("GET", "/", "", b"", Poured(9, taken.append))
    assert (answer.status, answer.is_poured, answer.body) == (status, False, bytes(length))
    assert taken == []


def test_what_is_poured_and_breaks_off_is_no_answer() -> None:
    taken: list[bytes] = []
    with (
        answering(
            b"HTTP/1.1 206 x\r\nContent-Length: %d\r\n\r\n" % (2 * POURED_BYTES) + bytes(POURED_BYTES + 1),
            then_close=True,
        ) as (_, http),
        pytest.raises(NoAnswer) as error,
    ):
        http.ask("GET", "/", "", b"", Poured(2 * POURED_BYTES, lambda piece: taken.append(bytes(piece))))
    assert error.value.trouble == "broken"
    assert taken == [bytes(POURED_BYTES)]


def test_headers_are_found_whatever_their_case() -> None:
    head = b'HTTP/1.1 200 OK\r\nX-MS-Meta-A: One \r\nEtag:\t"0x1"\r\nx-ms-meta-b_c: 2\r\ncontent-LENGTH: 0\r\n\r\n'
    with answering(head) as (_, http):
        answer = http.ask("GET", "/", "")
    assert answer.header(b"etag") == '"0x1"'
    assert answer.header(b"nothing") == ""
    assert answer.headers(b"x-ms-meta-") == {"a": "One", "b_c": "2"}


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n1;x=y\r\no\r\n01\r\nk\r\n000\r\nTrailer: t\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    ],
)
def test_answers_of_all_kinds(answer: bytes) -> None:
    with answering(answer) as (server, http):
        for _ in range(3):
            assert shown(http.ask("GET", "/", "")) == (200, b"ok")
        assert server.connections == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\n\r\nok",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 2\r\n\r\nok",
    ],
)
def test_a_connection_that_ends_with_its_answer(answer: bytes) -> None:
    with answering(answer, then_close=True) as (server, http):
        for number in range(1, 4):
            assert shown(http.ask("GET", "/", "")) == (200, b"ok")
            assert server.connections == number


def test_a_connection_that_ends_with_what_is_poured() -> None:
    answer = b"HTTP/1.1 206 x\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
    with answering(answer, then_close=True) as (server, http):
        for number in range(1, 4):
            assert http.ask("GET", "/", "", b"", Poured(2, lambda _: None)).is_poured
            assert server.connections == number


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"),
        ("DELETE", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
    ],
)
def test_answers_without_a_body(method: str, answer: bytes) -> None:
    with answering(answer) as (server, http):
        for _ in range(2):
            assert http.ask(method, "/", "").body == b""
        assert server.connections == 1


def test_a_connection_that_the_server_has_closed_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blobark.stores.http.IDLE_S", 0.0)
    with answering(OK, then_close=True) as (server, http):
        http.ask("GET", "/", "")
        assert server.closed.wait(10)
        assert shown(http.ask("GET", "/", "")) == (200, b"ok")
        assert server.connections == 2


WHOLE = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n123456789",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n1234\r\n5\r\n56789\r\n0\r\n\r\n",
]


@pytest.mark.parametrize("whole", WHOLE, ids=["of known length", "in chunks"])
def test_an_answer_that_breaks_off_is_no_answer(whole: bytes) -> None:
    for length in range(len(whole)):
        with answering(whole[:length], then_close=True) as (_, http), pytest.raises(NoAnswer) as caught:
            http.ask("GET", "/", "")
        assert caught.value.trouble == "broken"


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nlonger",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nlonger\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * (LONGEST_HEAD_BYTES + 100_000),
    ],
)
def test_a_damaged_answer_is_no_answer(answer: bytes) -> None:
    with answering(answer) as (_, http), pytest.raises(NoAnswer) as caught:
        http.ask("GET", "/", "")
    assert caught.value.trouble == "damaged"


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=300))
def test_noise_is_no_answer_or_one_with_a_status(noise: bytes) -> None:
    with answering(b"HTTP/1.1 " + noise, then_close=True) as (_, http):
        try:
            status = http.ask("GET", "/", "").status
        except NoAnswer:
            status = 200
        assert status >= 200


def test_a_server_that_says_nothing() -> None:
    release = threading.Event()
    with Server(lambda connection: release.wait(30)) as server:
        with pytest.raises(NoAnswer) as caught:
            client(server.url, 0.2).ask("GET", "/", "")
        release.set()
    assert caught.value.trouble == "timeout"


def test_a_server_that_does_not_take_what_is_sent() -> None:
    release = threading.Event()
    with Server(lambda connection: release.wait(30)) as server:
        with pytest.raises(NoAnswer) as caught:
            client(server.url, 0.2).ask("PUT", "/", "", bytes(64 << 20))
        release.set()
    assert caught.value.trouble == "timeout"


def test_a_slow_body_may_take_longer_than_the_timeout() -> None:
    """Each wait is bounded, not their sum: a line that moves a little all the time is no line that hangs."""
    server = Server()
    nothing = threading.Event()

    def script(connection: socket.socket) -> None:
        server.read(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n")
        for _ in range(8):
            nothing.wait(0.3)  # nobody sets it: this is the slowness that is tested
            connection.sendall(b"x")

    server.scripts.append(script)
    with server:
        assert shown(client(server.url, 1.0).ask("GET", "/", "")) == (200, b"x" * 8)


def test_an_answer_before_all_was_sent_is_heard() -> None:
    def script(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 403 No\r\nx-ms-error-code: AuthenticationFailed\r\nContent-Length: 0\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 20):
            pass

    with Server(script) as server:
        answer = client(server.url).ask("PUT", "/", "", bytes(8 << 20))
    assert (answer.status, answer.header(b"x-ms-error-code")) == (403, "AuthenticationFailed")


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://nowhere.invalid", f"http://{'x' * 70}.invalid"])
def test_nobody_is_there(url: str) -> None:
    with pytest.raises(NoAnswer) as caught:
        client(url).ask("GET", "/", "")
    assert caught.value.trouble == "connect"


def test_many_threads_have_connections_of_their_own() -> None:
    wanted, inside = 8, threading.Barrier(8)

    class Many(Server):
        def _serve(self) -> None:
            while True:
                try:
                    connection, _ = self._listener.accept()
                except OSError:
                    return
                self.connections += 1
                threading.Thread(target=self._one, args=[connection], daemon=True).start()

        def _one(self, connection: socket.socket) -> None:
            with connection:
                while self.read(connection):
                    connection.sendall(OK)

    with Many() as server:
        http = client(server.url)

        def work() -> None:
            inside.wait(10)
            for _ in range(50):
                assert http.ask("GET", "/", "").body == b"ok"

        threads = [threading.Thread(target=work) for _ in range(wanted)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(server.heads) == wanted * 50
        assert server.connections <= wanted
        http.close()


class TestProxies:
    def test_plain_http_asks_the_proxy_for_the_whole_address(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with answering(OK) as (server, _):
            place = server.url.removeprefix("http://")
            monkeypatch.setenv("http_proxy", f"http://me:pass%40word@{place}")
            assert shown(client("http://store.example:81").ask("GET", "/a", "")) == (200, b"ok")
        head = server.heads[0].split(b"\r\n")
        assert head[0] == b"GET http://store.example:81/a HTTP/1.1"
        assert head[1:3] == [b"Host: store.example:81", b"Proxy-Authorization: Basic bWU6cGFzc0B3b3Jk"]

    def test_tls_goes_through_a_tunnel(self, monkeypatch: pytest.MonkeyPatch) -> None:
        server = Server()
        first: list[bytes] = []

        def script(connection: socket.socket) -> None:
            server.read(connection)
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            first.append(connection.recv(3))

        server.scripts.append(script)
        with server:
            monkeypatch.setenv("https_proxy", server.url.removeprefix("http://"))
            with pytest.raises(NoAnswer) as caught:
                client("https://store.example").ask("GET", "/a", "")
            assert server.closed.wait(10)
        assert caught.value.trouble == "connect"
        assert server.heads == [b"CONNECT store.example:443 HTTP/1.1\r\nHost: store.example:443"]
        assert first == [b"\x16\x03\x01"], "the beginning of TLS"

    def test_a_proxy_that_refuses(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with answering(b"HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n") as (server, _):
            monkeypatch.setenv("https_proxy", server.url)
            with pytest.raises(NoAnswer) as caught:
                client("https://store.example").ask("GET", "/a", "")
        assert caught.value.trouble == "connect"

    def test_no_proxy_is_heard(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with answering(OK) as (server, _):
            monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
            monkeypatch.setenv("no_proxy", "127.0.0.1,.local")
            assert shown(client(server.url).ask("GET", "/a", "")) == (200, b"ok")

    @pytest.mark.parametrize("proxy", ["https://proxy.example", "socks5://user:secret@x", "http://x:notaport"])
    def test_a_proxy_of_another_kind_is_refused_in_one_line(self, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
        monkeypatch.setenv("https_proxy", proxy)
        with pytest.raises(ConfigError, match="proxy for https") as caught:
            client("https://store.example")
        assert "secret" not in str(caught.value)


def test_certificates_that_cannot_be_read() -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Http("https://store.example", connect_timeout_s=1, read_timeout_s=1, roots="/no/such/file")
