"""`open_store`: the store that a person has named, behind `Retrying`."""

from __future__ import annotations

import os
import threading

from blobark.errors import ConfigError
from blobark.stores.folder import FolderStore
from blobark.stores.retry import Retrying

AZURE = "azure"


def open_store(
    location: str,
    *,
    connection_string: str = "",
    container: str = "",
    create: bool = False,
    workers: int = 16,
    stop: threading.Event | None = None,
) -> Retrying:
    """Return the container `container` of Azure if `location` is `azure`, else the folder of that path.

    `create` makes the container or the folder when it is missing; for a folder that is seen here, for a container
    nothing is asked of the service without it. `workers` threads will use the store. Setting `stop` ends its waits.

    Raises:
        ConfigError: the connection string or the container's name is wrong.
        StoreMissing: there is no such folder.
        StoreDenied: it may not be opened, or not be made.
    """
    if not location:
        raise ConfigError("no store is named", "write `azure` or a folder's path")
    if location != AZURE:
        return Retrying(FolderStore(location, create=create), stop=stop)
    # obstore's threads do no more than move bytes: half of the processors are enough, and each one more
    # wakes the others up for nothing (on two processors a request costs a third less with one). Read when it starts.
    os.environ.setdefault("TOKIO_WORKER_THREADS", str(max(1, (os.cpu_count() or 1) // 2)))
    from blobark.stores.azure import AzureStore

    if not connection_string:
        raise ConfigError("the store is Azure, and there is no connection string")
    azure = AzureStore.from_connection_string(connection_string, container, workers=workers)
    retrying = Retrying(azure, stop=stop)
    if create:
        retrying.call(azure.create_container)
    return retrying
