"""Evidence of a drill: a JSON object that is signed with ed25519, so that another person can check it.

The signature is over the object without `signature`, as JSON with sorted keys, without spaces, in ASCII. The key is
made on first use, in state_dir (0600); the public one stands in the evidence, as 64 hex digits.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from blobark.errors import ConfigError, Fatal

FORMAT = 1
KEY_NAME = "drill-key"
MOST_BYTES = 16 << 20
"""A hundred failures with the longest paths there are fit well into it."""
_KEY = re.compile(r"[0-9a-f]{64}")


def sign(document: dict[str, Any], state_dir: Path) -> dict[str, Any]:
    """Return the document with format, public key and signature. Raises `Fatal` where the key cannot be used."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.from_private_bytes(_private_key(state_dir))
    whole = {**document, "format": FORMAT, "public_key": key.public_key().public_bytes_raw().hex()}
    return {**whole, "signature": key.sign(_signed(whole)).hex()}


def encode(document: dict[str, Any]) -> bytes:
    """Return a document as it is kept."""
    return json.dumps(document, indent=1).encode() + b"\n"


def decode(data: bytes, name: str) -> dict[str, Any]:
    """Return the document of a piece of evidence; raises `ConfigError` when it is none, or of a newer version."""
    try:
        document = json.loads(data, object_pairs_hook=_object) if len(data) <= MOST_BYTES else None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or document.get("kind") != "drill":
        raise ConfigError(f"{name} is no evidence of a drill, or is cut short")
    if document.get("format") != FORMAT:
        raise ConfigError(f"{name} is of another version than this Blobark reads ({FORMAT})")
    return document


def is_signed(document: dict[str, Any], key: str = "") -> bool:
    """Whether the signature is that of `key`, by default of the public key in the document."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    unsigned = {name: value for name, value in document.items() if name != "signature"}
    try:
        public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key or str(document.get("public_key"))))
        public.verify(bytes.fromhex(str(document.get("signature"))), _signed(unsigned))
    except (InvalidSignature, ValueError):
        return False
    return True


def read(path: Path) -> dict[str, Any]:
    """Return the document in a file. Raises `ConfigError`."""
    try:
        with open(path, "rb") as file:
            return decode(file.read(MOST_BYTES + 1), str(path))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from None


def public_key(text: str) -> str:
    """Return a public key that is given as 64 hex digits, or as a file with them. Raises `ConfigError`."""
    if _KEY.fullmatch(text.lower()):
        return text.lower()
    try:
        found = Path(text).read_text(errors="replace").strip().lower()
    except OSError:
        found = ""
    if not _KEY.fullmatch(found):
        raise ConfigError(f"{text!r} is no public key: 64 hex digits, or a file with them, are expected")
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON. One with a name twice says different things to different readers: `ValueError`."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _signed(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def _private_key(state_dir: Path) -> bytes:
    path = state_dir / KEY_NAME
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            text = path.read_text(errors="replace").strip()
        else:
            text = os.urandom(32).hex()
            with open(descriptor, "w") as file:
                file.write(f"{text}\n")
    except OSError as error:
        raise Fatal(f"the key {path} cannot be used ({error.strerror})") from None
    if not _KEY.fullmatch(text):
        raise Fatal(f"the key {path} is damaged", "remove it: the next drill makes a new one")
    return bytes.fromhex(text)
