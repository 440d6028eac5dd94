"""What only Azure's own SDK can do, on one pool of connections: blocks, delete, the container, and listing.

Importing it takes half a second, so it is imported when first needed. Its retries are off.

A page of names goes through the SDK's pipeline but is read here: the SDK makes an object of each name, which takes
200 us, and this takes 10. The request is signed with a SAS for listing, made from the key where there is a key.
"""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, unquote
from xml.etree import ElementTree

from azure.core import MatchConditions, PipelineClient
from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential
from azure.core.exceptions import DecodeError, HttpResponseError
from azure.core.pipeline import Pipeline
from azure.core.pipeline.transport import RequestsTransport
from azure.core.rest import HttpRequest, HttpResponse
from azure.storage.blob import BlobBlock, BlobClient, ContainerClient, ContainerSasPermissions, generate_container_sas

from blobark.clock import now_ns
from blobark.stores.azure_account import Account
from blobark.stores.base import BlobInfo

NAMES_IN_A_PAGE = 5000
_API_VERSION = "2021-12-02"


class Control:
    """The SDK's clients for one container. Raises the SDK's errors, for `azure_errors` to translate.

    `container` and `blob` are the SDK's own clients. May be used from `workers` threads at once.
    """

    def __init__(
        self, account: Account, container: str, *, workers: int, connect_timeout_s: float, read_timeout_s: float
    ) -> None:
        self._account = account
        self._name = container
        secret: AzureNamedKeyCredential | AzureSasCredential
        if account.sas:
            secret = AzureSasCredential(account.sas)
        else:
            secret = AzureNamedKeyCredential(account.name, account.key)
        transport = RequestsTransport(connection_timeout=connect_timeout_s, read_timeout=read_timeout_s)
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

    def commit(self, blob: BlobClient, block_ids: Sequence[str], meta: Mapping[str, str]) -> None:
        """Make a blob of blocks, unless there is one."""
        blocks = [BlobBlock(block_id=block_id) for block_id in block_ids]
        blob.commit_block_list(blocks, metadata=dict(meta), match_condition=MatchConditions.IfMissing)

    def page(self, prefix: str, marker: str) -> tuple[list[BlobInfo], str]:
        """Return up to `NAMES_IN_A_PAGE` blobs and the marker of the next page, which is empty after the last."""
        query = {
            "restype": "container",
            "comp": "list",
            "prefix": prefix,
            "marker": marker,
            "maxresults": str(NAMES_IN_A_PAGE),
        }
        text = "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items() if value)
        url = f"{self._account.endpoint}/{self._name}?{text}&{self._sas_for_listing()}"
        response = self._raw.send_request(HttpRequest("GET", url, headers={"x-ms-version": _API_VERSION}))
        if response.status_code != 200:
            raise HttpResponseError(response=response)
        try:
            return _blobs_in(response.read())
        except (ElementTree.ParseError, ValueError):
            raise DecodeError("the list of blobs is damaged", response=response) from None

    def close(self) -> None:
        """Let go of the connections."""
        self.container.close()

    def _sas_for_listing(self) -> str:
        if self._account.sas:
            return self._account.sas
        return generate_container_sas(
            self._account.name,
            self._name,
            account_key=self._account.key,
            permission=ContainerSasPermissions(list=True),
            expiry=datetime.fromtimestamp(now_ns() / 1e9, UTC) + timedelta(hours=1),
        )


def _blobs_in(page: bytes) -> tuple[list[BlobInfo], str]:
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
        blobs.append(BlobInfo(key, int(properties.findtext("Content-Length", "")), base64.b64decode(md5).hex()))
    return blobs, root.findtext("NextMarker") or ""


def hide_signatures(record: logging.LogRecord) -> bool:
    """Take SAS signatures out of a log record; urllib3 writes whole addresses at DEBUG."""
    text = record.getMessage()
    if "sig=" in text:
        record.msg, record.args = re.sub(r"sig=[^&\s\"']*", "sig=***", text), ()
    return True
