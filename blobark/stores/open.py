"""Stand-in until the real one is here."""
from __future__ import annotations
import threading
from blobark.stores.retry import Retrying
from blobark.stores.folder import FolderStore

def open_store(location: str, *, connection_string: str = "", container: str = "", create: bool = False, workers: int = 4, stop: threading.Event | None = None) -> Retrying:
    if location == "azure":
        from blobark.stores.azure import AzureStore
        return Retrying(AzureStore.from_connection_string(connection_string, container), stop=stop)
    return Retrying(FolderStore(location, create=create), stop=stop)
