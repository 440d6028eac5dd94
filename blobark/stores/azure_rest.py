"""`Rest`: requests to one container, a few lines each, where the SDK's own way costs too much.

Importing the SDK takes half a second, a block goes through 2 ms of its CPU and a page of names through a second; a
backup of small files is over in a few. So what every large save and every audit needs is asked for here: urllib3 makes
the connections, and what is sent and read is at https://learn.microsoft.com/rest/api/storageservices. A request has a
token of Entra ID, or a SAS: made from the key where there is a key. Nothing is repeated and no redirect followed.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, cast
from urllib.parse import quote, urlsplit
from urllib.request import getproxies, proxy_bypass

import certifi
import urllib3

from blobark.clock import now_ns
from blobark.stores.azure_account import Account, Connections
from blobark.stores.azure_entra import trusted_roots
from blobark.stores.azure_pages import archived_in, blobs_in, uncommitted_in
from blobark.stores.azure_sas import container_sas, hide_signatures
from blobark.stores.base import BlobInfo, Data

NAMES_IN_A_PAGE = 5000
SAS_LASTS_NS = 2 * 3600 * 10**9
API_VERSION = "2021-12-02"


class Refused(Exception):
    """The service's answer is not the one hoped for. Has no text: what was asked for may hold a secret."""

    def __init__(self, status: int, code: str, retry_after: str) -> None:
        super().__init__()
        self.status = status
        self.code = code
        """The service's word for it, "" where it has none."""
        self.retry_after = retry_after


class Damaged(Exception):
    """The answer cannot be read."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A run of another blob of the container that the service is to take over; `md5` is that of the run."""

    key: str
    offset: int
    length: int
    md5: bytes


class Rest:
    """One container's requests. Raises `Refused`, `Damaged` and what urllib3 does, for `azure_errors` to translate.

    May be used from as many threads as there are connections.
    """

    def __init__(self, account: Account, container: str, connections: Connections) -> None:
        self._account = account
        self._name = container
        self._made_sas = 0, ""
        logging.getLogger("urllib3.connectionpool").addFilter(hide_signatures)
        roots = trusted_roots() or certifi.where()
        options: dict[str, Any] = {
            "maxsize": connections.workers,
            "retries": False,
            "timeout": urllib3.Timeout(connect=connections.connect_timeout_s, read=connections.read_timeout_s),
            "cert_reqs": "CERT_REQUIRED",
            "ca_cert_dir" if os.path.isdir(roots) else "ca_certs": roots,
        }
        proxy = _proxy_for(account.endpoint)
        self._pool = urllib3.ProxyManager(proxy, **options) if proxy else urllib3.PoolManager(**options)

    def stage(self, key: str, block_id: str, data: Data) -> None:
        """Send a block with its MD5, which the service compares."""
        headers = {"Content-MD5": _b64(hashlib.md5(data, usedforsecurity=False).digest())}
        self._send("PUT", key, {"comp": "block", "blockid": _b64(block_id.encode())}, headers, data, hoped=201)

    def copy(self, key: str, block_id: str, source: Copy) -> None:
        """Stage a block that the service takes out of another blob and checks against its MD5."""
        url = f"{self._account.endpoint}/{self._name}/{quote(source.key)}"
        headers = {
            "x-ms-source-range": f"bytes={source.offset}-{source.offset + source.length - 1}",
            "x-ms-source-content-md5": _b64(source.md5),
        }
        if self._account.tokens:
            headers["x-ms-copy-source-authorization"] = f"Bearer {self._account.tokens.fresh().token}"
        else:
            url += f"?{self._sas()}"
        headers["x-ms-copy-source"] = url
        self._send("PUT", key, {"comp": "block", "blockid": _b64(block_id.encode())}, headers, hoped=201)

    def uncommitted(self, key: str) -> list[str]:
        """Return the ids of the blocks that were staged and are part of no blob."""
        try:
            response = self._send("GET", key, {"comp": "blocklist", "blocklisttype": "uncommitted"}, {})
        except Refused as error:
            if error.code != "BlobNotFound":
                raise
            return []
        try:
            return uncommitted_in(response.data)
        except ValueError:
            raise Damaged from None

    def commit(self, key: str, block_ids: Sequence[str], meta: Mapping[str, str], tier: str) -> None:
        """Make a blob of blocks, unless there is one, in a tier ("": the account's)."""
        blocks = "".join(f"<Latest>{_b64(block_id.encode())}</Latest>" for block_id in block_ids)
        body = f'<?xml version="1.0" encoding="utf-8"?><BlockList>{blocks}</BlockList>'.encode()
        headers = {"If-None-Match": "*", **{f"x-ms-meta-{name}": value for name, value in meta.items()}}
        if tier:
            headers["x-ms-access-tier"] = tier
        self._send("PUT", key, {"comp": "blocklist"}, headers, body, hoped=201)

    def lease(self, key: str, action: str, lease_id: str, *, lasts_s: float, timeout_s: float) -> None:
        """Acquire (for `lasts_s`), renew or release a lease of this id on a blob."""
        headers = {"x-ms-lease-action": action}
        if action == "acquire":
            headers |= {"x-ms-lease-duration": f"{lasts_s:.0f}", "x-ms-proposed-lease-id": lease_id}
        else:
            headers["x-ms-lease-id"] = lease_id
        hoped = 201 if action == "acquire" else 200
        self._send("PUT", key, {"comp": "lease"}, headers, hoped=hoped, timeout_s=timeout_s)

    def put_leased(self, key: str, lease_id: str, data: bytes) -> None:
        """Store a small blob over one on which there is this lease."""
        headers = {"x-ms-blob-type": "BlockBlob", "x-ms-lease-id": lease_id}
        self._send("PUT", key, {}, headers, data, hoped=201)

    def page(self, prefix: str, marker: str, *, meta: bool = False) -> tuple[list[BlobInfo], str]:
        """Return up to `NAMES_IN_A_PAGE` blobs and the marker of the next page, which is empty after the last."""
        page = self._page(prefix, marker, "metadata" if meta else "")
        try:
            return blobs_in(page, meta=meta)
        except ValueError:
            raise Damaged from None

    def archived(self, prefix: str, marker: str) -> tuple[list[BlobInfo], str]:
        """As `page`, the archived blobs alone."""
        page = self._page(prefix, marker, "")
        try:
            return archived_in(page)
        except ValueError:
            raise Damaged from None

    def service_time_ns(self) -> int:
        """Return what the service's clock says, in nanoseconds since 1970: its answers have it, refusals too."""
        url = f"{self._account.endpoint}/{self._name}?restype=container"
        response = self._pool.request("GET", url, headers={"x-ms-version": API_VERSION}, redirect=False)
        try:
            return int(parsedate_to_datetime(response.headers["Date"]).timestamp()) * 10**9
        except (KeyError, ValueError):
            raise Damaged from None

    def close(self) -> None:
        """Let go of the connections."""
        self._pool.clear()

    def _page(self, prefix: str, marker: str, include: str) -> bytes:
        query = {
            "restype": "container",
            "comp": "list",
            "prefix": prefix,
            "marker": marker,
            "maxresults": str(NAMES_IN_A_PAGE),
            "include": include,
        }
        return self._send("GET", "", query, {}).data

    def _send(
        self,
        method: str,
        key: str,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        data: Data | None = None,
        *,
        hoped: int = 200,
        timeout_s: float | None = None,
    ) -> urllib3.BaseHTTPResponse:
        """Make a request about the container ("") or a blob in it; return the answer when its status is the hoped.

        With `timeout_s` it takes no longer than that.
        """
        headers = {"x-ms-version": API_VERSION, **headers}
        text = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items() if value)
        if self._account.tokens:
            headers["Authorization"] = f"Bearer {self._account.tokens.fresh().token}"
        else:
            text += f"&{self._sas()}"
        place = f"/{quote(key)}" if key else ""
        url = f"{self._account.endpoint}/{self._name}{place}?{text}"
        # urllib3 sends whatever is a buffer, and only does not say so.
        options: dict[str, Any] = {"timeout": timeout_s} if timeout_s else {}
        response = self._pool.request(
            method, url, body=cast("bytes | None", data), headers=headers, redirect=False, **options
        )
        if response.status != hoped:
            found = response.headers
            raise Refused(response.status, found.get("x-ms-error-code", ""), found.get("Retry-After", ""))
        return response

    def _sas(self) -> str:
        """Return the SAS there is, or one made from the key for what is done here."""
        if self._account.sas:
            return self._account.sas
        until_ns, sas = self._made_sas
        if until_ns - now_ns() < SAS_LASTS_NS // 2:
            until_ns = now_ns() + SAS_LASTS_NS
            sas = container_sas(self._account.name, self._account.key, self._name, rights="rwl", until_ns=until_ns)
            self._made_sas = until_ns, sas
        return sas


def _proxy_for(endpoint: str) -> str:
    """Return the proxy that the environment names for an address, "" for none."""
    url = urlsplit(endpoint)
    if proxy_bypass(url.netloc):
        return ""
    proxy = getproxies().get(url.scheme, "")
    return proxy if not proxy or "//" in proxy else f"http://{proxy}"


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
