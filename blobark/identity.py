"""Which server this is: the name that its blobs start with and its snapshots lie under.

`server:` in the configuration decides, then what the state folder remembers. With neither, the store is asked: a
server whose machine id, host name and roots are all this machine's is adopted; if none resembles this machine it
is a new one, named after the host; in every other case a person has to say.
"""

from __future__ import annotations

import re
import socket
from pathlib import Path

from blobark import snapshot
from blobark.errors import ConfigError, SnapshotError
from blobark.model import Host, Server
from blobark.stores.base import Store


def this_host() -> Host:
    """Return this machine's name and id; the id is "" where the system has none."""
    machine_id = ""
    for path in (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id")):
        try:
            machine_id = path.read_text().strip()
        except OSError:
            continue
        if machine_id:
            break
    return Host(name=socket.gethostname(), machine_id=machine_id)


def name_for_host(host_name: str) -> str:
    """Return a server name made of a host name."""
    name = re.sub(r"[^a-z0-9.-]+", "-", host_name.lower()).strip(".-")[:63].strip(".-")
    return name or "server"


def server_to_save(store: Store, host: Host, root_names: list[bytes], adopt: str) -> str:
    """Return the name under which this machine saves, when neither configuration nor state says.

    `adopt` is a server of the store that a person named, "" for none.

    Raises:
        ConfigError: `adopt` is not in the store, or servers resemble this machine and none is it for certain.
    """
    known = list(snapshot.servers(store))
    if adopt:
        if adopt not in {server.name for server in known}:
            raise ConfigError(f"--adopt {adopt}: {store.name} has no such server", _have(known))
        return adopt
    new_name = name_for_host(host.name)
    same = [s for s in known if s.host == host and [root.raw_name for root in s.roots] == root_names]
    if len(same) == 1:
        return same[0].name
    alike = [s for s in known if s.host.machine_id == host.machine_id or s.host.name == host.name or s.name == new_name]
    if not alike:
        return new_name
    candidates = "; ".join(f"{s.name} (host {s.host.name}, roots {', '.join(r.name for r in s.roots)})" for s in alike)
    hint = "say --adopt NAME to go on with one of them, or set `server` in the configuration to a new name"
    raise ConfigError(f"this may be a server that {store.name} has already: {candidates}", hint)


def server_to_restore(store: Store) -> str:
    """Return the name of the one server in the store.

    Raises:
        ConfigError: there are several.
        SnapshotError: there is none.
    """
    known = list(snapshot.servers(store))
    if not known:
        raise SnapshotError(f"nothing has been saved in {store.name}", "or is it the wrong store?")
    if len(known) > 1:
        raise ConfigError(f"{store.name} holds several servers", f"choose with --server: {_have(known)}")
    return known[0].name


def _have(known: list[Server]) -> str:
    return ", ".join(server.name for server in known) or "it holds none"
