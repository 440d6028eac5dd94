"""SAS tokens: as people paste them (quoted, escaped once too often, with the `?` of an address), and made from a key.

A signature covers the values and not how they are escaped, so each value is taken to its plain form and escaped once.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from blobark.errors import ConfigError

if TYPE_CHECKING:
    import logging

SAS_VERSION = "2021-12-02"
_HINT = "copy the SAS token from the portal: ...&sig=... and nothing before or after it"


def clean_sas(text: str) -> str:
    """Return a SAS token in the one form that both libraries take.

    Raises:
        ConfigError: it is none. The message holds nothing of it.
    """
    text = text.strip().strip("\"'`").strip()
    text = re.sub(r"(?i)&(?:amp|#38|#x26);|\\u0026|\\&", "&", text)
    if "://" in text.partition("&")[0]:
        raise ConfigError("the SAS token is a whole address", _HINT)
    if "&" not in text and "sig=" not in text.lower():
        text = unquote(text)  # all of it was escaped
    pairs = [part.partition("=") for part in text.lstrip("?&").split("&") if part]
    values = {name: _plain(value) for name, _, value in pairs}
    if len(values) != len(pairs) or not all(re.fullmatch(r"[a-zA-Z]+", name) for name in values):
        raise ConfigError("the SAS token is not of the form name=value&name=value", _HINT)
    if not values.get("sig"):
        raise ConfigError("the SAS token has no sig=...", _HINT)
    if not all(re.fullmatch(r"[ -~]+", value) for value in values.values()):
        raise ConfigError("the SAS token has a part that is empty or strange", _HINT)
    values["sig"] = values["sig"].replace(" ", "+")
    if not re.fullmatch(r"[A-Za-z0-9+/]+={0,2}", values["sig"]):
        raise ConfigError("the signature in the SAS token is not base64: a piece of it is missing", _HINT)
    return "&".join(f"{name}={quote(value, safe='')}" for name, value in values.items())


def container_sas(account: str, key: str, container: str, *, rights: str, until_ns: int) -> str:
    """Return a SAS for a container, made from the account's key (base64); `until_ns` is in ns since 1970.

    What is signed, and in which order: learn.microsoft.com/rest/api/storageservices/create-service-sas, for the
    service's version 2020-12-06 and later.
    """
    until = datetime.fromtimestamp(until_ns / 1e9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    place = f"/blob/{account}/{container}"
    before = [rights, "", until, place, "", "", "", SAS_VERSION, "c"]
    after = [""] * 7  # snapshot, encryption scope, and what answers are to have as headers
    signature = hmac.digest(base64.b64decode(key), "\n".join([*before, *after]).encode(), hashlib.sha256)
    values = {"se": until, "sp": rights, "sv": SAS_VERSION, "sr": "c", "sig": base64.b64encode(signature).decode()}
    return "&".join(f"{name}={quote(value, safe='')}" for name, value in values.items())


def hide_signatures(record: logging.LogRecord) -> bool:
    """Take SAS signatures out of a log record; urllib3 writes whole addresses at DEBUG."""
    text = record.getMessage()
    if "sig=" in text:
        record.msg, record.args = re.sub(r"sig=[^&\s\"']*", "sig=***", text), ()
    return True


def _plain(value: str) -> str:
    """Return a value as it was before it was escaped, however often that was."""
    for _ in range(3):
        plain = unquote(value)
        if plain == value:
            break
        value = plain
    return value
