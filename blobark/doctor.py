"""`blobark doctor`: how this machine logs in to its store, and what it may do there.

Each right that a command needs is tried by the requests that it makes: a list, a read, a block that is never committed,
a small blob, a delete; the delete also where a blob was made. The blobs are `blobark/<server>/doctor` and
`blobark/<server>/doctor-blocks`; what may not be deleted stays, has always the same content, and disturbs nobody. No
secret is in the result.

Which right which command needs is said here once, and in docs/operations.md; tests/test_rights.py holds both to it.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Sequence

import msgspec

from blobark.blocks import digest_of
from blobark.clock import now_ns
from blobark.config import Config
from blobark.context import Context
from blobark.errors import EXIT_DONE, EXIT_FATAL, BlobarkError, BlobExists, BlobNotFound, Fatal, StoreDenied
from blobark.handout import script_sha256
from blobark.snapshot import PREFIX
from blobark.stores.base import Store

_READS = ("list", "read")
_WRITES = (*_READS, "create", "write")
_DELETES = (*_READS, "create", "delete")
NEEDS = {
    "index": _READS,
    "save": _WRITES,
    "backup": _WRITES,
    "restore": _READS,
    "status": _READS,
    "verify": _READS,
    "repair": _WRITES,
    "rebuild": _WRITES,
    "drill": (*_READS, "create"),
    "tag": (*_READS, "create"),
    "prune": _DELETES,
    "forget": _DELETES,
}
"""The rights of each command. `create` is a new blob, `write` its blocks, where it has more than one."""
USUAL = ("index", "save", "restore", "verify", "repair")
"""What is looked at unasked: a machine need not be able to delete, and the other commands need no other rights."""

CONTENT = b"blobark doctor has been here\n"

SKEW_S = 300
"""The service takes signatures from clocks that are up to 15 minutes off; a third of that is told."""

ENTRA_VARIABLES = (
    "AZURE_AUTHORITY_HOST",
    "AZURE_CLIENT_CERTIFICATE_PATH",
    "AZURE_CLIENT_ID",
    "AZURE_CLIENT_SECRET",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_TENANT_ID",
    "AZURE_TOKEN_CREDENTIALS",
    "IDENTITY_ENDPOINT",
    "MSI_ENDPOINT",
)


class Check(msgspec.Struct, frozen=True):
    """One thing that was tried: `ok` is None where it was not; `milliseconds` is how long it took."""

    what: str
    ok: bool | None
    milliseconds: float = 0.0
    said: str = ""


class DoctorResult(msgspec.Struct):
    """What was found. `used` is (what, value, where it came from); `missing` has a list for each command."""

    server: str
    used: list[tuple[str, str, str]]
    checks: list[Check] = msgspec.field(default_factory=list)
    missing: dict[str, list[str]] = msgspec.field(default_factory=dict)
    clock_ahead_s: int | None = None
    advice: list[str] = msgspec.field(default_factory=list)
    rescue_script_sha256: str = msgspec.field(default_factory=script_sha256)
    """Of the script that this version leaves in each container."""

    @property
    def exit_code(self) -> int:
        """4 when a command lacks something that it needs."""
        return EXIT_FATAL if any(self.missing.values()) else EXIT_DONE


def examine(context: Context, server: str, commands: Sequence[str], *, dry_run: bool) -> DoctorResult:
    """Try what the commands need; with `dry_run` only what changes nothing."""
    result = DoctorResult(server, list(_used(context.config)))
    ways: dict[str, Callable[[Store], None]] = {
        "list": lambda store: _first(store.list(f"{PREFIX}{result.server}/")),
        "read": lambda store: _read(store, result),
        "write": lambda store: _stage(store, f"{_key(result)}-blocks"),
        "create": lambda store: _create(store, _key(result)),
        "delete": lambda store: store.delete(_key(result)),
    }
    store = _reach(context, result, commands)
    if store is None:
        return result
    needed = {right for name in commands for right in NEEDS[name]}
    tidying = {"delete"} if "create" in needed else set()
    for right in (right for right in ways if right in needed | tidying):
        writes = right not in ("list", "read")
        result.checks.append(Check(right, None) if dry_run and writes else _tried(right, ways[right], store))
    allowed = {check.what for check in result.checks if check.ok is not False}
    result.missing = {name: [right for right in NEEDS[name] if right not in allowed] for name in commands}
    refused = next((check for check in result.checks if check.ok is False and check.what in needed), None)
    if refused is not None:
        names = ", ".join(name for name, rights in result.missing.items() if rights)
        result.advice.append(f"{names} cannot work: {refused.said}")
    elif _may_delete(result) and context.config.store == "azure" and "delete" not in needed:
        result.advice.append("the right to delete is given, and only prune and forget need it: see docs/operations.md")
    return result


def _reach(context: Context, result: DoctorResult, commands: Sequence[str]) -> Store | None:
    """Open the store and look at its clock; None, and all of `commands` without their rights, when it fails."""
    begun_s = time.perf_counter()
    try:
        store = context.open_store(False)
        greeting = store.greet()
    except Fatal as error:
        result.checks.append(Check("reach", False, _ms_since(begun_s), str(error)))
        result.missing = {name: list(NEEDS[name]) for name in commands}
        result.advice.append(f"{', '.join(commands)} cannot work: {error}")
        return None
    result.checks.append(Check("reach", True, _ms_since(begun_s)))
    result.used.append(("address", store.name, ""))
    if greeting.means:
        result.used.append(("logged in by", greeting.means, ""))
        result.used.append(("logged in as", greeting.who or "(the token does not say)", ""))
    if greeting.clock_ns:
        result.clock_ahead_s = round((now_ns() - greeting.clock_ns) / 1e9)
        if abs(result.clock_ahead_s) > SKEW_S:
            result.advice.append(f"this machine's clock is {result.clock_ahead_s:+} s off the service's: set it right")
    return store


def _may_delete(result: DoctorResult) -> bool:
    return any(check.what == "delete" and check.ok for check in result.checks)


def _tried(right: str, way: Callable[[Store], None], store: Store) -> Check:
    """Try one way. What ends every run is what is missing; anything else is an answer, and so a right."""
    begun_s = time.perf_counter()
    try:
        way(store)
    except BlobarkError as error:
        return Check(right, False, _ms_since(begun_s), str(error))
    return Check(right, True, _ms_since(begun_s))


def _first(blobs: Iterator[object]) -> None:
    next(blobs, None)


def _read(store: Store, result: DoctorResult) -> None:
    """Read the newest header, as every command does: in a folder one that another user has made may be closed."""
    key = _key(result)
    with contextlib.suppress(BlobarkError):  # told as the right to list
        key = max((blob.key for blob in store.list(f"{PREFIX}{result.server}/snapshots/")), default=key)
    try:
        store.read(key)
    except BlobNotFound:
        pass  # who may not read is not told that there is nothing


def _stage(store: Store, key: str) -> None:
    upload = store.begin(key)
    try:
        upload.stage(0, digest_of(CONTENT), CONTENT)
    finally:
        upload.abort()


def _create(store: Store, key: str) -> None:
    try:
        store.put(key, CONTENT, {}, create_only=True)
    except BlobExists:
        pass  # of an earlier time, and not to be deleted
    try:
        content = store.read(key)
    except StoreDenied:
        return  # told as the right to read
    if content != CONTENT:
        raise Fatal(f"{key} at {store.name} does not come back as it was stored", "do not trust this store")


def _key(result: DoctorResult) -> str:
    return f"{PREFIX}{result.server}/doctor"


def _ms_since(begun_s: float) -> float:
    return round((time.perf_counter() - begun_s) * 1000, 1)


def _used(config: Config) -> Iterator[tuple[str, str, str]]:
    """Yield what would be used for the store, and where it came from; of secrets only that."""
    if config.login is None:
        yield "store", str(config.store), str(config.file)
        return
    login = config.login
    yield "store", "azure", str(config.file)
    yield "login", login.auth, login.origins["auth"]
    for key in ("connection_string", "account_key", "sas_token"):
        if key in login.origins:
            yield key, "(secret)", login.origins[key]
    if login.account_name:
        yield "account", login.account_name, login.origins["account_name"]
    if login.endpoint:
        yield "endpoint", login.endpoint, login.origins["endpoint"]
    yield "container", config.container_name or "", str(config.file)
    if login.auth == "entra":
        named = [name for name in ENTRA_VARIABLES if os.environ.get(name)]
        yield "variables for Entra ID", ", ".join(named) or "none is set", "the environment"
