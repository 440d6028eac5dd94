"""Tokens of Microsoft Entra ID, through azure-identity, for our own requests and for the SDK.

One credential, asked when the token that is at hand nears its end, by one thread while the others wait. The chain is
azure-identity's: a service principal, workload identity or managed identity that the environment describes, then the
Azure CLI; what needs a person at a screen is left out, and `AZURE_TOKEN_CREDENTIALS` picks one. The library takes
0.4 s to import, so it is imported with the first token.

A token is in no error, no log record and no repr, and what holds one refuses to be pickled. Of what Entra ID
answers only the number of the error (AADSTS...) is passed on.
"""

from __future__ import annotations

import base64
import json
import os
import re
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from blobark.errors import BlobarkError, Retryable, StoreDenied

if TYPE_CHECKING:
    from azure.core.credentials import AccessToken, TokenCredential

SCOPE = "https://storage.azure.com/.default"
"""The same in every cloud."""

MARGIN_S = 300.0
"""A token is renewed so long before its end, or at half of its life when that is shorter."""

_UNREACHED = "is the network up, AZURE_AUTHORITY_HOST right, and its certificate trusted (REQUESTS_CA_BUNDLE)?"
_ADVICE = "see what `blobark doctor` says, and docs/operations.md"
_NOTHING = (
    "give this machine a managed identity, or set AZURE_TENANT_ID, AZURE_CLIENT_ID and AZURE_CLIENT_SECRET "
    "(or AZURE_CLIENT_CERTIFICATE_PATH), or run `az login`"
)
_CODES = {
    "7000215": "the client secret is wrong",
    "7000222": "the client secret has expired",
    "700016": "there is no such application in this tenant: AZURE_CLIENT_ID, AZURE_TENANT_ID",
    "700027": "the certificate does not fit the application",
    "700024": "the assertion is out of date: is this machine's clock right?",
    "70021": "no federated credential of the application fits this workload's token",
    "90002": "there is no such tenant: AZURE_TENANT_ID",
    "50076": "the account needs a second factor: use a service principal or a managed identity",
}


class Tokens:
    """A credential with its token. `fresh` raises what goes wrong; the SDK takes the token from here too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._chain: Sequence[TokenCredential] = ()
        self.means = ""
        """What the token came from: the name of a credential of azure-identity, "" before there is one."""
        self._token: AccessToken | None = None
        self._renew_at_s = 0.0

    def __reduce__(self) -> str | tuple[object, ...]:
        raise TypeError("tokens cannot be pickled; log in again where they are needed")

    def __repr__(self) -> str:
        return "Tokens()"

    def fresh(self) -> AccessToken:
        """Return a token that lives for some time.

        Raises:
            StoreDenied: Entra ID gives none, or there is nothing to ask it with.
            Retryable: it cannot be reached.
        """
        token = self._token
        if token is not None and time.time() < self._renew_at_s:
            return token
        with self._lock:
            if self._token is None or time.time() >= self._renew_at_s:
                try:
                    self._token = self._ask()
                except BlobarkError:  # the one at hand is good yet, and Entra ID may be back before its end
                    if self._token is None or time.time() >= self._token.expires_on:
                        raise
                now_s, end_s = time.time(), self._token.expires_on
                self._renew_at_s = end_s - min(MARGIN_S, (end_s - now_s) / 2)
            return self._token

    def get_token(self, *_scopes: str, **_options: Any) -> AccessToken:
        """Give the SDK its token, as the credentials of azure-core do."""
        return self.fresh()

    def who(self) -> str:
        """Say whose token it is: application or user, and tenant; "" where the token does not tell."""
        try:
            body = self.fresh().token.split(".")[1]
            claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
            named = {"application": claims.get("appid"), "user": claims.get("upn"), "object": claims.get("oid")}
            named["tenant"] = claims.get("tid")
        except (IndexError, ValueError, AttributeError):
            return ""
        return ", ".join(f"{name} {value}" for name, value in named.items() if isinstance(value, str))

    def close(self) -> None:
        """Let go of the credentials' connections."""
        with self._lock:
            for credential in self._chain:
                getattr(credential, "close", lambda: None)()
            self._chain = ()

    def _ask(self) -> AccessToken:
        """Ask one credential of the chain after the other, until one has what it needs; that one decides."""
        from azure.core.exceptions import AzureError
        from azure.identity import CredentialUnavailableError

        failed = None
        try:
            self._chain = self._chain or _chain()
            for credential in self._chain:
                try:
                    token = credential.get_token(SCOPE)
                except CredentialUnavailableError:
                    continue
                self.means, self._chain = type(credential).__name__, (credential,)
                return token
        except (AzureError, ValueError) as error:
            failed = _translate(error)
        # Raised where nothing is caught: what was caught may hold a secret, and must not be chained.
        if self.means:
            raise failed or StoreDenied(f"{self.means} gives no token any more", _ADVICE)
        raise failed or StoreDenied("there is nothing to log in to Entra ID with", _NOTHING)


def trusted_roots() -> str:
    """Return the file of the certificates that this machine is told to trust besides the usual; "" for none."""
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE") or ""


def _chain() -> Sequence[TokenCredential]:
    """Return the credentials that the environment allows for, in azure-identity's order."""
    import logging

    from azure.identity import DefaultAzureCredential

    # Without a handler of its own the library's warnings, of many lines, would go to standard error.
    logging.getLogger("azure").addHandler(logging.NullHandler())
    logging.getLogger("msal").addHandler(logging.NullHandler())
    options: dict[str, Any] = {"connection_verify": trusted_roots()} if trusted_roots() else {}
    default = DefaultAzureCredential(
        exclude_shared_token_cache_credential=True,
        exclude_visual_studio_code_credential=True,
        exclude_powershell_credential=True,
        exclude_developer_cli_credential=True,
        exclude_interactive_browser_credential=True,
        exclude_broker_credential=True,
        # Whether the authority exists is asked of the public cloud, which knows no private one.
        disable_instance_discovery=not _is_public(os.environ.get("AZURE_AUTHORITY_HOST", "")),
        retry_total=1,
        **options,
    )
    # One by one they say what went wrong, which the chain as a whole makes one long text of.
    return cast("Sequence[TokenCredential]", default.credentials)


def _is_public(authority: str) -> bool:
    from azure.identity import AzureAuthorityHosts

    known = {value for name, value in vars(AzureAuthorityHosts).items() if name.startswith("AZURE_")}
    return not authority or (urlsplit(authority if "//" in authority else f"//{authority}").hostname or "") in known


def _translate(error: Exception) -> BlobarkError:
    from azure.core.exceptions import ServiceRequestError, ServiceResponseError

    codes = re.findall(r"AADSTS(\d+)", str(error))
    if codes:
        return StoreDenied(f"Entra ID gives no token: AADSTS{codes[0]}", _CODES.get(codes[0], _ADVICE))
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ServiceRequestError | ServiceResponseError):
            return Retryable("Entra ID cannot be reached", _UNREACHED)
        cause = cause.__cause__ or cause.__context__
    return StoreDenied("Entra ID gives no token", _ADVICE)
