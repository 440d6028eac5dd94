"""What only Azure's own SDK can do, on one pool of connections: blocks, delete, the container, and listing.

Importing it takes half a second, so it is imported when first needed. Its retries are off.

A page of names goes through the SDK's pipeline but is read here: the SDK makes an object of each name, which takes
200 us, and this takes 10. The request has a token of Entra ID, or a SAS: for listing, made from the key where there
is a key.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from urllib.parse import quote, unquote
from xml.etree import ElementTree

from azure.core import MatchConditions, PipelineClient
from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential
from azure.core.exceptions import DecodeError, HttpResponseError
from azure.core.pipeline import Pipeline
from azure.core.pipeline.transport import RequestsTransport
from azure.core.rest import HttpRequest, HttpResponse
from azure.storage.blob import (
    BlobBlock,
    BlobClient,
    ContainerClient,
    ContainerSasPermissions,
    RehydratePriority,
    StandardBlobTier,
    generate_container_sas,
)

from blobark.clock import now_ns
from blobark.stores.azure_account import Account
from blobark.stores.azure_entra import Tokens, trusted_roots
from blobark.stores.base import BlobInfo, Priority

NAMES_IN_A_PAGE = 5000
SAS_RENEWED_NS = 3600 * 10**9
_API_VERSION = "2021-12-02"
_IS_ARCHIVED = b"<AccessTier>Archive<"
_END_OF_PAGE = re.compile(rb"<NextMarker ?(?:/>|>([^<&]*)</NextMarker>)</EnumerationResults>")


class Control:
    """The SDK's clients for one container. Raises the SDK's errors, for `azure_errors` to translate.

    `container` and `blob` are the SDK's own clients. May be used from `workers` threads at once.
    """

    def __init__(
        self, account: Account, container: str, *, workers: int, connect_timeout_s: float, read_timeout_s: float
    ) -> None:
        self._account = account
        self._name = container
        self._made_sas = 0, ""
        secret: AzureNamedKeyCredential | AzureSasCredential | Tokens
        if account.tokens:
            secret = account.tokens
        elif account.sas:
            secret = AzureSasCredential(account.sas)
        else:
            secret = AzureNamedKeyCredential(account.name, account.key)
        transport = RequestsTransport(
            connection_timeout=connect_timeout_s,
            read_timeout=read_timeout_s,
            connection_verify=trusted_roots() or True,
        )
        transport.open()
        for scheme in ("https://", "http://"):
            transport.session.get_adapter(scheme).init_poolmanager(1, workers)
        logging.getLogger("urllib3.connectionpool").addFilter(hide_signatures)
        self.container = ContainerClient(account.endpoint, container, secret, transport=transport, retry_total=0)
        self._raw: PipelineClient[HttpRequest, HttpResponse] = PipelineClient(
            account.endpoint, pipeline=Pipeline(transport, policies=[])
        )

    def blob(self, key: str) -> BlobClient:
        """Return the SDK's client of one blob."""
        return self.container.get_blob_client(key)

    def put(self, key: str, data: bytes, meta: Mapping[str, str], tier: str, *, overwrite: bool) -> None:
        """Store a blob in one piece, in a tier ("": the account's)."""
        self.container.upload_blob(key, data, overwrite=overwrite, metadata=dict(meta), standard_blob_tier=_tier(tier))

    def stage(self, key: str, block_id: str, data: bytes) -> None:
        """Send a block with its MD5. By hand, since the SDK takes 2 ms of CPU for what takes half of one."""
        query = f"comp=block&blockid={quote(base64.b64encode(block_id.encode()), safe='')}"
        headers = {"Content-MD5": base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()}
        response = self._send("PUT", f"/{quote(key)}", query, headers, data)
        if response.status_code != 201:
            raise HttpResponseError(response=response)

    def copy_block(self, blob: BlobClient, block_id: str, source: str, offset: int, length: int, md5: bytes) -> None:
        """Stage a block that the service takes out of another blob of this container, and checks against its MD5."""
        url = self.blob(source).url.partition("?")[0]
        authorization = None
        if self._account.tokens:
            authorization = f"Bearer {self._account.tokens.fresh().token}"
        else:
            url += f"?{self._sas()}"
        blob.stage_block_from_url(
            block_id, url, offset, length, source_content_md5=bytearray(md5), source_authorization=authorization
        )

    def commit(self, blob: BlobClient, block_ids: Sequence[str], meta: Mapping[str, str], tier: str) -> None:
        """Make a blob of blocks, unless there is one, in a tier ("": the account's)."""
        blocks = [BlobBlock(block_id=block_id) for block_id in block_ids]
        blob.commit_block_list(
            blocks, metadata=dict(meta), match_condition=MatchConditions.IfMissing, standard_blob_tier=_tier(tier)
        )

    def set_tier(self, key: str, tier: str, priority: Priority) -> None:
        """Bring a blob back from the archive tier."""
        self.blob(key).set_standard_blob_tier(
            StandardBlobTier(tier), rehydrate_priority=RehydratePriority(priority.capitalize())
        )

    def page(self, prefix: str, marker: str, *, meta: bool = False) -> tuple[list[BlobInfo], str]:
        """Return up to `NAMES_IN_A_PAGE` blobs and the marker of the next page, which is empty after the last."""
        response = self._page(prefix, marker, "metadata" if meta else "")
        try:
            return _blobs_in(response.read(), meta=meta)
        except (ElementTree.ParseError, ValueError):
            raise DecodeError("the list of blobs is damaged", response=response) from None

    def archived(self, prefix: str, marker: str) -> tuple[list[BlobInfo], str]:
        """As `page`, the archived blobs alone. A page without any is searched and not read: a hundredth of the work."""
        response = self._page(prefix, marker, "")
        page = response.read()
        end = _END_OF_PAGE.fullmatch(page.rpartition(b"</Blobs>")[2].strip())
        if end and _IS_ARCHIVED not in page:
            return [], (end[1] or b"").decode()
        try:
            blobs, marker = _blobs_in(page)
        except (ElementTree.ParseError, ValueError):
            raise DecodeError("the list of blobs is damaged", response=response) from None
        return [blob for blob in blobs if blob.is_archived], marker

    def _page(self, prefix: str, marker: str, include: str) -> HttpResponse:
        query = {
            "restype": "container",
            "comp": "list",
            "prefix": prefix,
            "marker": marker,
            "maxresults": str(NAMES_IN_A_PAGE),
            "include": include,
        }
        text = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items() if value)
        response = self._send("GET", "", text, {}, None)
        if response.status_code != 200:
            raise HttpResponseError(response=response)
        return response

    def service_time_ns(self) -> int:
        """Return what the service's clock says, in nanoseconds since 1970: its answers have it, refusals too."""
        url = f"{self._account.endpoint}/{self._name}?restype=container"
        response = self._raw.send_request(HttpRequest("GET", url, headers={"x-ms-version": _API_VERSION}))
        try:
            return int(parsedate_to_datetime(response.headers["Date"]).timestamp()) * 10**9
        except (KeyError, ValueError):
            raise DecodeError("the answer has no date", response=response) from None

    def close(self) -> None:
        """Let go of the connections."""
        self.container.close()

    def _send(self, method: str, path: str, query: str, headers: dict[str, str], data: bytes | None) -> HttpResponse:
        """Make a request to the container, or to the blob at `path` in it, without the SDK's policies."""
        headers = {"x-ms-version": _API_VERSION, **headers}
        if self._account.tokens:
            headers["Authorization"] = f"Bearer {self._account.tokens.fresh().token}"
        else:
            query += f"&{self._sas()}"
        url = f"{self._account.endpoint}/{self._name}{path}?{query}"
        return self._raw.send_request(HttpRequest(method, url, headers=headers, content=data))

    def _sas(self) -> str:
        """Return the SAS there is, or one made from the key, good for two hours and for what is done by hand here."""
        if self._account.sas:
            return self._account.sas
        made_ns, sas = self._made_sas
        if now_ns() - made_ns > SAS_RENEWED_NS:
            sas = generate_container_sas(
                self._account.name,
                self._name,
                account_key=self._account.key,
                permission=ContainerSasPermissions(read=True, write=True, list=True),
                expiry=datetime.fromtimestamp(now_ns() / 1e9, UTC) + timedelta(hours=2),
            )
            self._made_sas = now_ns(), sas
        return sas


def _blobs_in(page: bytes, *, meta: bool = False) -> tuple[list[BlobInfo], str]:
    """Return what a page of names holds; folders that a hierarchical account lists besides the blobs are left out."""
    root = ElementTree.fromstring(page)  # noqa: S314 - expat reads no external entities, and bounds the others
    blobs = []
    for blob in root.iter("Blob"):
        name, properties = blob.find("Name"), blob.find("Properties")
        if name is None or not name.text or properties is None:
            raise ValueError("a blob without a name")
        if properties.findtext("ResourceType") == "directory":
            continue
        key = unquote(name.text) if name.get("Encoded") == "true" else name.text
        md5 = properties.findtext("Content-MD5") or ""
        created = properties.findtext("Creation-Time") if meta else ""
        info = BlobInfo(
            key,
            int(properties.findtext("Content-Length", "")),
            base64.b64decode(md5).hex(),
            {item.tag.lower(): item.text or "" for item in blob.find("Metadata") or ()},
            created_ns=int(parsedate_to_datetime(created).timestamp()) * 1_000_000_000 if created else 0,
            tier=(properties.findtext("AccessTier") or "").lower(),
            rehydrating=bool(properties.findtext("ArchiveStatus")),
        )
        blobs.append(info)
    return blobs, root.findtext("NextMarker") or ""


def _tier(name: str) -> StandardBlobTier | None:
    return StandardBlobTier(name) if name else None


def hide_signatures(record: logging.LogRecord) -> bool:
    """Take SAS signatures out of a log record; urllib3 writes whole addresses at DEBUG."""
    text = record.getMessage()
    if "sig=" in text:
        record.msg, record.args = re.sub(r"sig=[^&\s\"']*", "sig=***", text), ()
    return True
