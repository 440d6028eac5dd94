"""What is asked of Azure through its own SDK: the container itself, and what is rare or about one blob at a time.

Importing it takes half a second, so it is imported when first needed. Its retries are off.
"""

from __future__ import annotations

import logging

from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential
from azure.core.pipeline.transport import RequestsTransport
from azure.storage.blob import BlobClient, ContainerClient, RehydratePriority, StandardBlobTier

from blobark.stores.azure_account import Account, Connections
from blobark.stores.azure_entra import Tokens, trusted_roots
from blobark.stores.azure_sas import hide_signatures
from blobark.stores.base import Priority


class Control:
    """The SDK's clients for one container. Raises the SDK's errors, for `azure_errors` to translate.

    `container` and `blob` are the SDK's own clients. May be used from as many threads as there are connections.
    """

    def __init__(self, account: Account, container: str, connections: Connections) -> None:
        secret: AzureNamedKeyCredential | AzureSasCredential | Tokens
        if account.tokens:
            secret = account.tokens
        elif account.sas:
            secret = AzureSasCredential(account.sas)
        else:
            secret = AzureNamedKeyCredential(account.name, account.key)
        transport = RequestsTransport(
            connection_timeout=connections.connect_timeout_s,
            read_timeout=connections.read_timeout_s,
            connection_verify=trusted_roots() or True,
        )
        transport.open()
        for scheme in ("https://", "http://"):
            transport.session.get_adapter(scheme).init_poolmanager(1, connections.workers)
        logging.getLogger("urllib3.connectionpool").addFilter(hide_signatures)
        self.container = ContainerClient(account.endpoint, container, secret, transport=transport, retry_total=0)

    def blob(self, key: str) -> BlobClient:
        """Return the SDK's client of one blob."""
        return self.container.get_blob_client(key)

    def set_tier(self, key: str, tier: str, priority: Priority) -> None:
        """Bring a blob back from the archive tier."""
        self.blob(key).set_standard_blob_tier(
            StandardBlobTier(tier), rehydrate_priority=RehydratePriority(priority.capitalize())
        )

    def close(self) -> None:
        """Let go of the connections."""
        self.container.close()
