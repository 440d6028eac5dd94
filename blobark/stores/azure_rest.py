"""`Rest`: requests to one container, a few lines each: all that a backup or a restore asks of the service often.

What is sent and read is at https://learn.microsoft.com/rest/api/storageservices. A request has a token of Entra ID, or
a SAS: made from the key where there is a key, so that nothing is signed request by request. Nothing is repeated.

The SDK takes half a second to import and 2 ms of CPU for a request; azure_control.py has what is asked through it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import quote, urlsplit

from blobark.clock import now_ns
from blobark.model import Data
from blobark.stores.azure_account import Account, Connections
from blobark.stores.azure_entra import trusted_roots
from blobark.stores.azure_pages import archived_in, blobs_in, uncommitted_in
from blobark.stores.azure_sas import container_sas
from blobark.stores.base import BlobInfo
from blobark.stores.http import Answer, Http, NoAnswer, Poured

NAMES_IN_A_PAGE = 5000
SAS_LASTS_NS = 2 * 3600 * 10**9
API_VERSION = "2021-12-02"
CANNOT_COPY = "CannotVerifyCopySource"
"""The service's word for a block that it cannot take over from where it is said to be."""

_NOTHING: Mapping[str, str] = {}


class Refused(Exception):
    """The service's answer is not the one hoped for. Has no text: what was asked for may hold a secret."""

    def __init__(self, status: int, code: str, retry_after: str) -> None:
        super().__init__()
        self.status = status
        self.code = code
        """The service's word for it, "" where it has none."""
        self.retry_after = retry_after


@dataclass(frozen=True, slots=True)
class Copy:
    """A run of another blob of the container that the service is to take over; `data` is what lies there."""

    key: str
    offset: int
    data: Data


class Rest:
    """One container's requests. Raises `Refused` and `NoAnswer`, for `azure_errors` to translate.

    May be used from many threads at once.
    """

    def __init__(self, account: Account, container: str, connections: Connections) -> None:
        """Nothing is asked of the service yet. Raises `ConfigError`."""
        self._account = account
        url = urlsplit(account.endpoint)
        self._place = f"{url.path}/{container}"
        self._container = container
        self._made_sas = 0, ""
        self._http = Http(
            f"{url.scheme}://{url.netloc}",
            connect_timeout_s=connections.connect_timeout_s,
            read_timeout_s=connections.read_timeout_s,
            roots=trusted_roots(),
            stages=connections.stages,
        )

    def stat(self, key: str) -> BlobInfo:
        """Return what the service knows of a blob."""
        answer = self._send("HEAD", key)
        try:
            size_bytes = int(answer.header(b"content-length"))
            md5 = base64.b64decode(answer.header(b"content-md5")).hex()
        except ValueError:
            raise NoAnswer("damaged") from None
        return BlobInfo(key, size_bytes, md5, answer.headers(b"x-ms-meta-"), answer.header(b"etag"))

    def get(self, key: str, span: str, version: str) -> Data:
        """Return a blob, or the bytes of a range ("3-" or "3-7", the last one included; "" for all of it).

        With a `version` (an ETag) the blob must be that one.
        """
        headers = {"Range": f"bytes={span}"} if span else {}
        if version:
            headers["If-Match"] = version
        return self._send("GET", key, headers=headers, hoped=206 if span else 200).body

    def pour(self, key: str, offset: int, poured: Poured, version: str) -> int:
        """Let a range of one version of a blob be taken as it comes; return how long it is.

        If it is not as long as was asked for, nothing of it has been taken.
        """
        headers = {"Range": f"bytes={offset}-{offset + poured.size_bytes - 1}", "If-Match": version}
        answer = self._send("GET", key, headers=headers, hoped=206, poured=poured)
        return poured.size_bytes if answer.is_poured else len(answer.body)

    def put(
        self, key: str, data: Data, meta: Mapping[str, str], tier: str, *, create_only: bool, version: str = ""
    ) -> None:
        """Store a blob in one piece, in a tier ("": the account's); where there is that `version`, if one is given."""
        headers = {"x-ms-blob-type": "BlockBlob"} | _condition(create_only=create_only, version=version)
        self._send("PUT", key, headers=headers | _described(meta, tier), data=data, hoped=201)

    def delete(self, key: str) -> None:
        """Remove a blob."""
        self._send("DELETE", key, hoped=202)

    def stage(self, key: str, block_id: str, data: Data) -> None:
        """Send a block with its CRC-64, which the service compares."""
        headers = {"x-ms-content-crc64": _crc64(data)}
        self._send("PUT", key, {"comp": "block", "blockid": _b64(block_id.encode())}, headers, data, hoped=201)

    def copy(self, key: str, block_id: str, source: Copy) -> None:
        """Stage a block that the service takes out of another blob and checks against its CRC-64."""
        url = f"{self._account.endpoint}/{self._container}/{quote(source.key)}"
        headers = {
            "x-ms-source-range": f"bytes={source.offset}-{source.offset + len(source.data) - 1}",
            "x-ms-source-content-crc64": _crc64(source.data),
        }
        if self._account.tokens:
            headers["x-ms-copy-source-authorization"] = f"Bearer {self._account.tokens.fresh().token}"
        else:
            url += f"?{self._sas()}"
        headers["x-ms-copy-source"] = url
        try:
            self._send("PUT", key, {"comp": "block", "blockid": _b64(block_id.encode())}, headers, hoped=201)
        except Refused as error:
            if error.code != "Crc64Mismatch":
                raise
            # Not of what came over a line: what lies there is damaged, and will be the next time.
            raise Refused(error.status, CANNOT_COPY, "") from None

    def uncommitted(self, key: str) -> list[str]:
        """Return the ids of the blocks that were staged and are part of no blob."""
        try:
            answer = self._send("GET", key, {"comp": "blocklist", "blocklisttype": "uncommitted"})
        except Refused as error:
            if error.code != "BlobNotFound":
                raise
            return []
        try:
            return uncommitted_in(bytes(answer.body))
        except ValueError:
            raise NoAnswer("damaged") from None

    def commit(
        self, key: str, block_ids: Sequence[str], meta: Mapping[str, str], tier: str, *, version: str = ""
    ) -> None:
        """Make a blob of blocks in a tier ("": the account's), where there is none, or that `version` of it."""
        blocks = "".join(f"<Latest>{_b64(block_id.encode())}</Latest>" for block_id in block_ids)
        body = f'<?xml version="1.0" encoding="utf-8"?><BlockList>{blocks}</BlockList>'.encode()
        condition = _condition(create_only=not version, version=version)
        self._send("PUT", key, {"comp": "blocklist"}, condition | _described(meta, tier), body, hoped=201)

    def lease(self, key: str, action: str, lease_id: str, *, lasts_s: float) -> None:
        """Acquire (for `lasts_s`), renew or release a lease of this id on a blob."""
        headers = {"x-ms-lease-action": action}
        if action == "acquire":
            headers |= {"x-ms-lease-duration": f"{lasts_s:.0f}", "x-ms-proposed-lease-id": lease_id}
        else:
            headers["x-ms-lease-id"] = lease_id
        hoped = 201 if action == "acquire" else 200
        self._send("PUT", key, {"comp": "lease"}, headers, hoped=hoped)

    def put_leased(self, key: str, lease_id: str, data: bytes) -> None:
        """Store a small blob over one on which there is this lease."""
        headers = {"x-ms-blob-type": "BlockBlob", "x-ms-lease-id": lease_id}
        self._send("PUT", key, headers=headers, data=data, hoped=201)

    def page(self, prefix: str, marker: str, *, meta: bool = False) -> tuple[list[BlobInfo], str]:
        """Return up to `NAMES_IN_A_PAGE` blobs and the marker of the next page, which is empty after the last."""
        page = self._page(prefix, marker, "metadata" if meta else "")
        try:
            return blobs_in(page, meta=meta)
        except ValueError:
            raise NoAnswer("damaged") from None

    def archived(self, prefix: str, marker: str) -> tuple[list[BlobInfo], str]:
        """As `page`, the archived blobs alone."""
        page = self._page(prefix, marker, "")
        try:
            return archived_in(page)
        except ValueError:
            raise NoAnswer("damaged") from None

    def service_time_ns(self) -> int:
        """Return what the service's clock says, in nanoseconds since 1970: its answers have it, refusals too."""
        answer = self._http.ask("GET", f"{self._place}?restype=container", f"x-ms-version: {API_VERSION}\r\n")
        try:
            return int(parsedate_to_datetime(answer.header(b"date")).timestamp()) * 10**9
        except ValueError:
            raise NoAnswer("damaged") from None

    def close(self) -> None:
        """Let go of the connections."""
        self._http.close()

    def _page(self, prefix: str, marker: str, include: str) -> bytes:
        query = {
            "restype": "container",
            "comp": "list",
            "prefix": prefix,
            "marker": marker,
            "maxresults": str(NAMES_IN_A_PAGE),
            "include": include,
        }
        return bytes(self._send("GET", "", query).body)

    def _send(
        self,
        method: str,
        key: str,
        query: Mapping[str, str] = _NOTHING,
        headers: Mapping[str, str] = _NOTHING,
        data: Data = b"",
        *,
        hoped: int = 200,
        poured: Poured | None = None,
    ) -> Answer:
        """Make a request about the container ("") or a blob in it; return the answer when its status is the hoped.

        Headers are printable ASCII: keys and metadata were looked at, tokens and a SAS are base64 and escapes.
        """
        words = [f"{name}={quote(value, safe='')}" for name, value in query.items() if value]
        lines = [f"{name}: {value}\r\n" for name, value in headers.items()]
        if self._account.tokens:
            lines.append(f"Authorization: Bearer {self._account.tokens.fresh().token}\r\n")
        else:
            words.append(self._sas())
        target = f"{self._place}/{quote(key)}" if key else self._place
        target += f"?{'&'.join(words)}" if words else ""
        answer = self._http.ask(method, target, f"x-ms-version: {API_VERSION}\r\n{''.join(lines)}", data, poured)
        if answer.status != hoped:
            raise Refused(answer.status, answer.header(b"x-ms-error-code"), answer.header(b"retry-after"))
        return answer

    def _sas(self) -> str:
        """Return the SAS there is, or one made from the key for what is done here."""
        if self._account.sas:
            return self._account.sas
        until_ns, sas = self._made_sas
        if until_ns - now_ns() < SAS_LASTS_NS // 2:
            until_ns = now_ns() + SAS_LASTS_NS
            name, key = self._account.name, self._account.key
            sas = container_sas(name, key, self._container, rights="rwdl", until_ns=until_ns)
            self._made_sas = until_ns, sas
        return sas


def _condition(*, create_only: bool, version: str) -> dict[str, str]:
    """Return the header that says what may be there before a blob is stored."""
    if version:
        return {"If-Match": version}
    return {"If-None-Match": "*"} if create_only else {}


def _described(meta: Mapping[str, str], tier: str) -> dict[str, str]:
    """Return the headers of a new blob's metadata and tier ("": the account's)."""
    headers = {f"x-ms-meta-{name}": value for name, value in meta.items()}
    return headers | {"x-ms-access-tier": tier} if tier else headers


def _crc64(data: Data) -> str:
    """Return the CRC-64 as the service wants it: that of NVMe, its lowest byte first."""
    from awscrt.checksums import crc64nvme  # 50 ms, and most runs have no large file

    return _b64(crc64nvme(data).to_bytes(8, "little"))


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
