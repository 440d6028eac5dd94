"""Proxies that play what Azurite cannot: a way out of the archive tier that takes time, and a write-once policy.

Azurite itself keeps tiers, lists them and answers 409 BlobArchived to a read; but what is set to another tier is there
at once. Behind `ArchiveProxy` it comes after so many more listings. Azurite knows no policies: `WormProxy` refuses, as
the service does, whatever would overwrite or delete a blob that is there.
"""

from __future__ import annotations

import re
import socket
from collections import Counter
from dataclasses import dataclass, field
from urllib.parse import unquote

from azure.storage.blob import ContainerClient

from tests.fault_proxy import Fault, FaultProxy, Message, error_answer, read_message

ACCEPTED = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"
WRITES = re.compile(r"comp=(block|blocklist|metadata|properties)(&|$)")


def key_of(request: Message) -> str:
    """Return the key of the blob that a request is about, "" where it is about none."""
    parts = request.target.split("?")[0].split("/", 3)
    return unquote(parts[3]) if len(parts) == 4 else ""


@dataclass
class ArchiveProxy(FaultProxy):
    """A blob that is asked for is back after `listings` more listings, at most `at_once` of them each time."""

    listings: int = 1
    at_once: int = 1_000_000
    asked: Counter[str] = field(default_factory=Counter)
    priorities: set[str] = field(default_factory=set)
    most_coming: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._coming: dict[str, tuple[int, Message]] = {}

    def come_back(self) -> None:
        """Let what is on its way be back with the next listing."""
        with self._lock:
            self._coming = {key: (0, asked) for key, (_, asked) in self._coming.items()}

    def answered(self, request: Message) -> bytes:
        if request.method == "PUT" and "comp=tier" in request.target:
            key = key_of(request)
            with self._lock:
                self.asked[key] += 1
                self.priorities.add(request.header("x-ms-rehydrate-priority"))
                self._coming.setdefault(key, (self.listings, request))
                self.most_coming = max(self.most_coming, len(self._coming))
            return ACCEPTED
        if "comp=list" in request.target:
            with self._lock:
                self._coming = {key: (left - 1, asked) for key, (left, asked) in self._coming.items()}
                due = [key for key, (left, _) in self._coming.items() if left < 0][: self.at_once]
                back = [self._coming.pop(key)[1] for key in due]
            for asked in back:
                self._ask_server(asked)
        return b""

    def altered(self, request: Message, reply: Message) -> Message:
        if "comp=list" not in request.target:
            return reply
        body = _joined(reply)
        with self._lock:
            for key in self._coming:
                name = re.escape(f"<Name>{key}</Name>".encode())
                mark = rb"\1<ArchiveStatus>rehydrate-pending-to-hot</ArchiveStatus>"
                body = re.sub(b"(" + name + rb".*?<AccessTier>Archive</AccessTier>)", mark, body, flags=re.DOTALL)
        head = re.sub(rb"\r\n(Transfer-Encoding|Content-Length):[^\r]*", b"", reply.head, flags=re.IGNORECASE)
        reply.head = head[:-4] + b"\r\nContent-Length: %d\r\n\r\n" % len(body)
        reply.body = body
        return reply

    def _ask_server(self, request: Message) -> None:
        with socket.create_connection(("127.0.0.1", self.server_port)) as server, server.makefile("rb") as stream:
            server.sendall(request.head + request.body)
            reply = read_message(stream, "PUT")
            assert reply is not None
            assert reply.head.split(b" ")[1] in (b"200", b"202"), reply.head


def _joined(reply: Message) -> bytes:
    """Return the body of an answer without the sizes of its chunks."""
    if "chunked" not in reply.header("Transfer-Encoding").lower():
        return reply.body
    body, rest = b"", reply.body
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size.split(b";")[0], 16)
        body, rest = body + rest[:length], rest[length + 2 :]
    return body


@dataclass
class WormProxy(FaultProxy):
    """A container with a time-based retention policy; `container` is the way to it that does not lead through here."""

    container: ContainerClient | None = None
    refused: list[str] = field(default_factory=list)

    def answered(self, request: Message) -> bytes:
        key, query = key_of(request), request.target.partition("?")[2]
        harmful = request.method == "DELETE" or (
            request.method == "PUT" and ("comp=" not in query or WRITES.search(query))
        )
        if not (key and harmful) or self.container is None or not self.container.get_blob_client(key).exists():
            return b""
        with self._lock:
            self.refused.append(f"{request.method} {key}")
        return error_answer(Fault("answer", status=409, code="BlobImmutableDueToPolicy"), request.method)
