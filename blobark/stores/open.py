"""`open_store`: the store that a person has named, behind `Retrying`."""

from __future__ import annotations

import threading

from blobark.config_azure import Login
from blobark.errors import ConfigError
from blobark.stores.load import NO_LIMITS, Limits
from blobark.stores.retry import Caller, Retrying, here
from metrics.stages import Stages

AZURE = "azure"


def open_store(  # noqa: PLR0913 - each by its name
    location: str,
    *,
    login: Login | None = None,
    container: str = "",
    create: bool = False,
    access_tier: str = "",
    workers: int = 16,
    limits: Limits = NO_LIMITS,
    stop: threading.Event | None = None,
    caller: Caller = here,
    stages: Stages | None = None,
) -> Retrying:
    """Return the container `container` of Azure if `location` is `azure`, else the folder of that path.

    `create` makes the container or the folder when it is missing; for a folder that is seen here, for a container
    nothing is asked of the service without it. `access_tier` is that of Azure's content ("": the account's own).
    `workers` threads will use the store. Setting `stop` ends its waits; `caller` makes the requests of a service, which
    may hang. `stages` gets to know how long its calls take.

    Raises:
        ConfigError: the login or the container's name is wrong.
        StoreMissing: there is no such folder.
        StoreDenied: it may not be opened, or not be made.
    """
    if not location:
        raise ConfigError("no store is named", "write `azure` or a folder's path")
    if location != AZURE:
        from blobark.stores.folder import FolderStore

        return Retrying(FolderStore(location, create=create), limits=limits, stop=stop, stages=stages)
    from blobark.stores.azure import AzureStore
    from blobark.stores.azure_account import account_of

    if login is None:
        raise ConfigError("the store is Azure, and there is nothing to log in with")
    azure = AzureStore(
        account_of(login),
        container,
        workers=workers,
        read_timeout_s=limits.timeout_s,
        access_tier=access_tier,
        stages=stages,
    )
    retrying = Retrying(azure, limits=limits, stop=stop, caller=caller, stages=stages)
    if create:
        retrying.call(azure.create_container)
    return retrying
