"""The one `translate` of the Azure store: what a library raised becomes an error of ours.

Decided by the service's error code, then by the HTTP status, then by the class of the error. The text of an error is
never passed on, and the error it came in is never chained, since both can hold an address with a SAS in it.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import parse_qs

from blobark.clock import now_ns
from blobark.errors import (
    BlobarkError,
    BlobExists,
    BlobNotFound,
    BlocksLost,
    ContentError,
    Retryable,
    StoreDenied,
    StoreFull,
    StoreLocked,
    StoreMissing,
    StoreUnusable,
    Throttled,
)
from blobark.stores.azure_account import Account
from blobark.stores.azure_rest import CANNOT_COPY, Refused
from blobark.stores.http import NoAnswer, Trouble

_NO_ANSWER: dict[Trouble, str] = {
    "connect": "no connection",
    "timeout": "no answer in time",
    "broken": "the connection broke",
    "damaged": "the answer is damaged",
}

_NO_CONTAINER = {"ContainerNotFound", "FilesystemNotFound"}
_EXISTS = {
    "BlobAlreadyExists",
    "ConditionNotMet",
    "ContainerAlreadyExists",
    "PathAlreadyExists",
    "TargetConditionNotMet",
}
_EXISTS_WHEN_CREATING = {"BlobImmutableDueToPolicy", "UnauthorizedBlobOverwrite"}
_PASSING = {
    "AccountBeingCreated",
    "ContainerBeingDeleted",
    "Crc64Mismatch",
    "InternalError",
    "Md5Mismatch",
    "OperationTimedOut",
    "SystemInUse",
}
_DENIED = {
    "AccountIsDisabled": "the storage account is disabled",
    "AuthenticationFailed": "the key or signature is wrong, or this machine's clock is over 15 minutes off",
    "AuthorizationFailure": "the key or signature is wrong, or the account's firewall keeps this machine out",
    "AuthorizationPermissionMismatch": "a right is missing",
    "AuthorizationProtocolMismatch": "the SAS is for https only",
    "AuthorizationResourceTypeMismatch": "the SAS is for another kind of resource",
    "AuthorizationServiceMismatch": "the SAS is for another service",
    "AuthorizationSourceIPMismatch": "the SAS is not for this machine's address",
    "InsufficientAccountPermissions": "a right is missing",
    "InvalidAuthenticationInfo": "the credentials are malformed",
    "KeyBasedAuthenticationNotPermitted": "the account takes no keys",
    "NoAuthenticationInformation": "no credentials were sent",
    "UnauthorizedBlobOverwrite": "the right to overwrite is missing",
}
_DENIED_BY_ENTRA = {
    "AuthenticationFailed": "the token of Entra ID is refused: is the tenant right, and this machine's clock?",
    "AuthorizationFailure": "a role is missing, or the account's firewall keeps this machine out",
    "AuthorizationPermissionMismatch": "a role is missing, such as Storage Blob Data Contributor on the container; "
    "a new one counts after some minutes",
    "InvalidAuthenticationInfo": "the token of Entra ID is refused: is the tenant right, and this machine's clock?",
}
_LOCKED = {
    "BlobImmutableDueToPolicy": "it is write-once and may not go yet",
    "LeaseIdMissing": "somebody holds a lease on it",
    "LeaseIdMismatchWithBlobOperation": "somebody holds a lease on it",
    "SnapshotsPresent": "it has snapshots made by the service",
}
_LOST = {"InvalidBlobOrBlock", "InvalidBlockList"}
_UNREADABLE = {
    CANNOT_COPY: "the service cannot read it where it is, or finds other bytes there",
    "BlobArchived": "it is in the archive tier: rehydrate it first",
    "BlobBeingRehydrated": "it is on its way out of the archive tier: come back later",
    "InvalidBlobType": "it is no block blob",
    "InvalidRange": "it ends before what was asked for",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """What is known of a call that failed: HTTP status (0: no answer), the service's code, and what it wants."""

    status: int
    code: str = ""
    retry_after_s: float = 0.0
    no_answer: str = ""


def translate(error: BaseException, what: str, account: Account, where: str, *, creating: bool) -> BlobarkError | None:
    """Return our error for a library's one, about the key or task `what` at `where`; None if it is no library's."""
    failure = _of_rest(error) or _of_sdk(error)
    return _decide(failure, f"{what} at {where}", account, creating) if failure else None


def _decide(failure: Failure, what: str, account: Account, creating: bool) -> BlobarkError:  # noqa: PLR0911
    status, code = failure.status, failure.code
    if failure.no_answer:
        hint = "is the account's name right, and the network up?" if failure.no_answer == _NO_ANSWER["connect"] else ""
        return Retryable(f"{what}: {failure.no_answer}", hint)
    said = f"{what}: {f'{status} {code}'.strip()}"
    if code in _PASSING or status == 408:
        return Retryable(said, retry_after_s=failure.retry_after_s)
    if status in (429, 503):
        return Throttled(said, retry_after_s=failure.retry_after_s)
    if status == 507:
        return StoreFull(said)
    if code in _UNREADABLE or status == 416:
        return ContentError(f"{said}: {_UNREADABLE.get(code, _UNREADABLE['InvalidRange'])}")
    if status >= 500 or status < 400:
        return Retryable(said, retry_after_s=failure.retry_after_s)
    if code in _EXISTS or (creating and (code in _EXISTS_WHEN_CREATING or (not code and status in (409, 412)))):
        return BlobExists(f"{what} is already there")
    if code in _NO_CONTAINER:
        return StoreMissing(f"{what}: there is no such container", "make it, or give --create-container")
    if status in (401, 403) or code in _DENIED:
        return _denied(said, code, account)
    if code in _LOCKED:
        return StoreLocked(f"{said}: {_LOCKED[code]}")
    if status == 404 or code in _LOST:
        return BlocksLost(f"{said}: its blocks are gone") if code in _LOST else BlobNotFound(f"{what} is not there")
    return StoreUnusable(f"{said}: the service does not accept this request")


def _denied(said: str, code: str, account: Account) -> StoreDenied:
    reason = _DENIED.get(code, "the credentials are refused")
    if account.tokens:
        return StoreDenied(said, _DENIED_BY_ENTRA.get(code, reason))
    if not account.sas:
        return StoreDenied(said, f"{reason}; check the account key")
    token = parse_qs(account.sas)
    begins, ends = _time_in(token, "st"), _time_in(token, "se")
    now = datetime.fromtimestamp(now_ns() / 1e9, UTC)
    if ends and ends <= now:
        return StoreDenied(said, f"the SAS expired at {ends:%Y-%m-%d %H:%M} UTC; make a new one")
    if begins and begins > now:
        return StoreDenied(said, f"the SAS is not valid before {begins:%Y-%m-%d %H:%M} UTC")
    rights = token.get("sp", ["(those of a stored access policy)"])[0]
    return StoreDenied(said, f"{reason}; the rights in the SAS are {rights}")


def _time_in(token: dict[str, list[str]], name: str) -> datetime | None:
    try:
        time = datetime.fromisoformat(token[name][0])
    except (KeyError, ValueError):
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _of_sdk(error: BaseException) -> Failure | None:
    sdk = sys.modules.get("azure.core.exceptions")  # what has not been imported has raised nothing
    if sdk is None:
        return None
    if isinstance(error, sdk.DecodeError | sdk.DeserializationError | sdk.IncompleteReadError):
        return Failure(0, no_answer=_NO_ANSWER["damaged"])
    if isinstance(error, sdk.ServiceRequestTimeoutError | sdk.ServiceResponseTimeoutError):
        return Failure(0, no_answer=_NO_ANSWER["timeout"])
    if isinstance(error, sdk.ServiceRequestError):
        return Failure(0, no_answer=_NO_ANSWER["connect"])
    if isinstance(error, sdk.HttpResponseError):
        headers = getattr(error.response, "headers", {})
        code = headers.get("x-ms-error-code", "")
        return Failure(error.status_code or 0, code, _seconds(headers.get("Retry-After")))
    if isinstance(error, sdk.AzureError):
        return Failure(0, no_answer=_NO_ANSWER["broken"])
    return None


def _of_rest(error: BaseException) -> Failure | None:
    if isinstance(error, Refused):
        return Failure(error.status, error.code, _seconds(error.retry_after))
    return Failure(0, no_answer=_NO_ANSWER[error.trouble]) if isinstance(error, NoAnswer) else None


def _seconds(header: str | None) -> float:
    """Return the seconds of a Retry-After header; 0 for a date, which this service never sends."""
    return float(header) if header and header.isascii() and header.isdigit() else 0.0
