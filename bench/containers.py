"""Make, share and remove a container, in a process of its own: the Azure library would count as memory of what is run.

    BLOBARK_BENCH_CONNECTION=... python containers.py create|delete|share NAME

`share` prints the container's address with a signature that is valid for a day.
"""

import os
import sys
from datetime import UTC, datetime, timedelta

from azure.storage.blob import ContainerClient, ContainerSasPermissions, generate_container_sas


def main(action: str, name: str) -> None:
    text = os.environ["BLOBARK_BENCH_CONNECTION"]
    container = ContainerClient.from_connection_string(text, name)
    if action == "create":
        container.create_container()
    elif action == "delete":
        container.delete_container()
    else:
        assert container.account_name
        signature = generate_container_sas(
            container.account_name,
            name,
            account_key=dict(part.split("=", 1) for part in text.split(";") if part)["AccountKey"],
            permission=ContainerSasPermissions(read=True, write=True, create=True, list=True, add=True),
            expiry=datetime.now(UTC) + timedelta(days=1),
        )
        print(f"{container.url}?{signature}")


if __name__ == "__main__":
    main(*sys.argv[1:])
