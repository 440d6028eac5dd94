"""How a run logs in to Azure: keys of the configuration and variables of the environment become one `Login`.

    a secret in the file goes before any in the environment; two secrets side by side are a mistake
    `auth` says which kind it is; without it the secret that is there does, and an account without one means Entra ID

The variables are those of Azure's own tools. No fault that is told here holds a secret.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn, get_args

import msgspec

from blobark.config_keys import Auth, Secret, connection_fault

LOGIN_KEYS: Final = ("auth", "connection_string", "account_name", "account_key", "sas_token", "endpoint")
VARIABLES: Final = {
    "connection_string": "AZURE_STORAGE_CONNECTION_STRING",
    "account_key": "AZURE_STORAGE_KEY",
    "sas_token": "AZURE_STORAGE_SAS_TOKEN",
    "account_name": "AZURE_STORAGE_ACCOUNT",
}
_SECRETS: Final = ("connection_string", "account_key", "sas_token")
_SECRET_OF: Final[dict[str, str]] = dict(zip(get_args(Auth), _SECRETS, strict=False))
_AUTH_OF: Final[dict[str, Any]] = {secret: auth for auth, secret in _SECRET_OF.items()}


class Login(msgspec.Struct, frozen=True, kw_only=True):
    """What opens an account. `origins` says for each part that was given where it came from."""

    auth: Auth
    secret: Secret = Secret()
    account_name: str = ""
    endpoint: str = ""
    """The address of the blob service; "" for the one that the public cloud has for the account."""
    origins: dict[str, str] = {}


class LoginFault(Exception):
    """A login that cannot be: the key that is wrong, and what is wrong with it."""

    def __init__(self, key: str, fault: str) -> None:
        super().__init__(key, fault)
        self.key = key
        self.fault = fault


def login(values: Mapping[str, Any], place: Callable[[str], str], environ: Mapping[str, str]) -> Login:
    """Return the login that the values of the keys and the environment make; `place` says where a key was given.

    Raises:
        LoginFault: something is missing, or two things contradict each other.
    """
    secret_key = _secret_key(values, environ)
    auth: Auth = values["auth"] or (_AUTH_OF[secret_key] if secret_key else "entra")
    origins = {"auth": place("auth") if values["auth"] else "what else is set"}

    def given(key: str) -> str:
        value = values[key]
        text = value.reveal() if isinstance(value, Secret) else value or ""
        if text:
            origins[key] = place(key)
        elif text := environ.get(VARIABLES.get(key, ""), "").strip():
            origins[key] = VARIABLES[key]
        return str(text)

    secret = given(secret_key) if secret_key else ""
    if secret_key and not secret:
        _fault(secret_key, f"not set, and auth: {auth} needs it (or {VARIABLES[secret_key]})")
    if auth == "connection_string":
        _check_connection(secret, origins, values, environ)
        return Login(auth=auth, secret=Secret(secret), origins=origins)
    account_name, endpoint = given("account_name"), given("endpoint")
    if not account_name and not endpoint and not secret_key and not values["auth"]:
        names = f"{VARIABLES['connection_string']}, or account_name with a key, a SAS or Entra ID"
        _fault("connection_string", f"not set, and store: azure needs it (or {names})")
    if not account_name and (auth == "key" or not endpoint):
        _fault("account_name", f"not set, and auth: {auth} needs it (or {VARIABLES['account_name']})")
    if auth == "entra" and endpoint.startswith("http:"):
        _fault("endpoint", "expected https: with Entra ID a token goes over the line")
    return Login(auth=auth, secret=Secret(secret), account_name=account_name, endpoint=endpoint, origins=origins)


def _secret_key(values: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    """Return the key of the secret that counts, "" where none does."""
    in_file = [key for key in _SECRETS if values[key]]
    if len(in_file) > 1:
        _fault(in_file[1], f"set beside {in_file[0]}, and only one of them can be used: take one out")
    if auth := values["auth"]:
        wanted = _SECRET_OF.get(auth, "")
        if in_file and in_file[0] != wanted:
            _fault(in_file[0], f"does not go with auth: {auth}: take one of them out")
        return wanted
    if in_file:
        return in_file[0]
    in_environment = [key for key in _SECRETS if environ.get(VARIABLES[key], "").strip()]
    if len(in_environment) > 1:
        names = " and ".join(VARIABLES[key] for key in in_environment)
        choices = " or ".join(str(_AUTH_OF[key]) for key in in_environment)
        _fault("auth", f"not set, and {names} are all set: say which with auth: {choices}")
    return in_environment[0] if in_environment else ""


def _check_connection(
    text: str, origins: Mapping[str, str], values: Mapping[str, Any], environ: Mapping[str, str]
) -> None:
    where = origins["connection_string"]
    for key in ("account_name", "endpoint"):
        if values[key]:
            _fault(key, f"does not go with a connection string, which names its own ({where}): take one of them out")
    if fault := connection_fault(text):
        _fault("connection_string", fault)
    named = re.search(r"(?:^|;)\s*accountname\s*=\s*([^;\s]+)", text, re.IGNORECASE)
    account = environ.get(VARIABLES["account_name"], "").strip()
    if named and account and where == VARIABLES["connection_string"] and named[1].lower() != account.lower():
        _fault("connection_string", f"{where} is for the account {named[1]}, and {VARIABLES['account_name']} another")


def _fault(key: str, text: str) -> NoReturn:
    raise LoginFault(key, text)
