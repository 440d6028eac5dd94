"""An account of Azure Storage: where it is, and the one thing that opens it, made of a login or a connection string.

Understood in a connection string: account key or SAS, `UseDevelopmentStorage=true`, `DefaultEndpointsProtocol`,
`EndpointSuffix`, `BlobEndpoint` (with a path too, as emulators and private end points have it). What is wrong is said
with the names of the parts, and never with their values.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from blobark.config_azure import Login
from blobark.config_keys import endpoint_fault
from blobark.errors import ConfigError
from blobark.stores.azure_entra import Tokens
from blobark.stores.azure_sas import clean_sas
from metrics.stages import Stages

_DEVELOPMENT = {
    "accountname": "devstoreaccount1",
    # The same everywhere, and printed in the emulator's manual.
    "accountkey": "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==",
    "blobendpoint": "http://127.0.0.1:10000/devstoreaccount1",
}
_CONTAINER = re.compile(r"[a-z0-9](?:-?[a-z0-9]){2,62}|\$root|\$web")
_HINT = "copy it from the portal: storage account, access keys or shared access signature"


@dataclass(frozen=True, slots=True)
class Account:
    """One storage account: its name, the address of its blob service, and a key, a SAS or tokens of Entra ID."""

    name: str
    endpoint: str
    key: str = field(default="", repr=False)
    sas: str = field(default="", repr=False)
    tokens: Tokens | None = field(default=None, repr=False)

    def __reduce__(self) -> str | tuple[object, ...]:
        """Refuse to be pickled: a secret must not travel."""
        raise TypeError("an account with its secret cannot be pickled; open the store again where it is needed")

    @property
    def is_plain_http(self) -> bool:
        """Whether the address is http, which is only ever so on this machine."""
        return self.endpoint.startswith("http:")


@dataclass(frozen=True, slots=True)
class Connections:
    """How a service is talked to: threads that do so at once, how long it may be silent, and who times the answers."""

    workers: int
    connect_timeout_s: float
    read_timeout_s: float
    stages: Stages | None = None


def account_of(login: Login) -> Account:
    """Return the account that a login opens; nothing is asked of anybody yet.

    Raises:
        ConfigError: what it holds cannot be right.
    """
    secret = login.secret.reveal()
    if login.auth == "connection_string":
        return parse_connection_string(secret)
    endpoint = _checked(login.endpoint or f"https://{login.account_name}.blob.core.windows.net")
    name = login.account_name or _account_in(endpoint)
    if login.auth == "key":
        key = secret.strip().strip("\"'")
        if not _is_base64(key):
            raise ConfigError("the account key is not base64: a piece of it is missing", _HINT)
        return Account(name, endpoint, key=key)
    if login.auth == "sas":
        return Account(name, endpoint, sas=clean_sas(secret))
    if endpoint.startswith("http:"):
        raise ConfigError("a token of Entra ID would go over plain http", "write https in endpoint")
    return Account(name, endpoint, tokens=Tokens())


def parse_connection_string(text: str) -> Account:
    """Return the account that a connection string names.

    Raises:
        ConfigError: it is not a connection string, lacks something, or would send data in the clear.
    """
    parts: dict[str, str] = {}
    text = text.strip().strip("\"'").replace("&amp;", "&")
    for piece in filter(None, (piece.strip() for piece in text.split(";"))):
        name, equals, value = piece.partition("=")
        if not equals:
            raise ConfigError("the connection string has a part without `=`", _HINT)
        parts[name.strip().lower()] = value.strip()
    if parts.get("usedevelopmentstorage", "").lower() == "true":
        parts = _DEVELOPMENT | parts
    endpoint = _endpoint(parts)
    key, sas = parts.get("accountkey", ""), parts.get("sharedaccesssignature", "")
    if bool(key) == bool(sas):
        raise ConfigError("the connection string needs either AccountKey or SharedAccessSignature", _HINT)
    if key and not _is_base64(key):
        raise ConfigError("AccountKey in the connection string is not base64: a piece of it is missing", _HINT)
    name = parts.get("accountname") or _account_in(endpoint)
    if key and not name:
        raise ConfigError("the connection string has an AccountKey and no AccountName", _HINT)
    return Account(name, endpoint, key, clean_sas(sas) if sas else "")


def check_container(name: str) -> str:
    """Return the name when it can be that of a container; raises `ConfigError`."""
    if not _CONTAINER.fullmatch(name) or len(name) > 63:
        raise ConfigError(
            f"{name!r} cannot be the name of a container",
            "3 to 63 lower-case letters, digits and single hyphens",
        )
    return name


def _endpoint(parts: dict[str, str]) -> str:
    given = parts.get("blobendpoint", "")
    if not given:
        if not re.fullmatch(r"[a-z0-9-]{3,}", parts.get("accountname", "")):
            raise ConfigError("the connection string has neither BlobEndpoint nor a valid AccountName", _HINT)
        protocol = parts.get("defaultendpointsprotocol", "https").lower()
        given = f"{protocol}://{parts['accountname']}.blob.{parts.get('endpointsuffix', 'core.windows.net')}"
    return _checked(given)


def _checked(given: str) -> str:
    """Return the address of a blob service in one form. Raises `ConfigError`."""
    if fault := endpoint_fault(given):
        raise ConfigError(f"the account cannot be opened: {fault}", _HINT)
    url = urlsplit(given)
    host, port = url.hostname or "", url.port
    shown = f"[{host}]" if ":" in host else host
    return f"{url.scheme}://{shown}{f':{port}' if port else ''}{url.path.rstrip('/')}"


def _account_in(endpoint: str) -> str:
    """Return the account's name as an address has it: the path where there is one, else the first label."""
    url = urlsplit(endpoint)
    return url.path.strip("/").split("/")[0] or (url.hostname or "").split(".")[0]


def _is_base64(text: str) -> bool:
    try:
        return bool(base64.b64decode(text, validate=True))
    except binascii.Error:
        return False
