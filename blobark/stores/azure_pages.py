"""What Azure answers in XML: pages of names, and lists of blocks.

Read by looking for the few elements that are wanted: a parser of all of XML takes ten times as long, and the audit
of a save waits for it. In text `<` is always escaped, so an element cannot hide in a name. What does not look as it
should raises `ValueError`.
"""

from __future__ import annotations

import base64
import binascii
import re
from email.utils import parsedate_to_datetime
from functools import lru_cache
from urllib.parse import unquote

from blobark.stores.base import BlobInfo

_WANTED = re.compile(
    rb"<(Name|Content-Length|Content-MD5|AccessTier|ArchiveStatus|Creation-Time|Last-Modified|ResourceType)"
    rb"(?: Encoded=\"true\")?>([^<]+)</"
)
_META = re.compile(rb"<([^<>/ ]+)>([^<]*)</")
_END = re.compile(rb"\s*<NextMarker ?(?:/>|>([^<]*)</NextMarker>)\s*</EnumerationResults>\s*")
_UNCOMMITTED = re.compile(rb"<UncommittedBlocks ?(?:/>|>(.*)</UncommittedBlocks>)", re.DOTALL)
_BLOCK_ID = re.compile(rb"<Name>([^<]*)</Name>")
_IS_ARCHIVED = b"<AccessTier>Archive<"


def blobs_in(page: bytes, *, meta: bool = False) -> tuple[list[BlobInfo], str]:
    """Return a page's blobs and the next page's marker; with `meta` their metadata and creation times too.

    Folders that an account with a hierarchical namespace lists besides the blobs are left out.
    """
    blobs, marker = _parts(page)
    *whole, rest = blobs.split(b"</Blob>")
    if b"<Blob>" in rest:
        raise ValueError("a blob without its end")
    try:
        found = [_blob(blob, meta=meta) for blob in whole]
    except KeyError:
        raise ValueError("a blob without a name or a length") from None
    return [info for info in found if info is not None], marker


def archived_in(page: bytes) -> tuple[list[BlobInfo], str]:
    """As `blobs_in`, the archived blobs alone. A page without any is searched and not read."""
    if _IS_ARCHIVED not in page:
        return [], _parts(page)[1]
    blobs, marker = blobs_in(page)
    return [blob for blob in blobs if blob.is_archived], marker


def uncommitted_in(answer: bytes) -> list[str]:
    """Return the ids of the blocks that were staged and are part of no blob, a character a byte: they may be any."""
    if b"</BlockList>" not in answer:
        raise ValueError("a list of blocks without its end")
    found = _UNCOMMITTED.search(answer)
    ids = _BLOCK_ID.findall(found[1] or b"") if found else []
    return [base64.b64decode(_text(block_id), validate=True).decode("latin-1") for block_id in ids]


def _parts(page: bytes) -> tuple[bytes, str]:
    """Return the blobs' part of a page, and the next page's marker."""
    blobs, there, end = page.rpartition(b"</Blobs>")
    if not there:
        blobs, there, end = page.partition(b"<Blobs />" if b"<Blobs />" in page else b"<Blobs/>")
        blobs = b""
    found = _END.fullmatch(end)
    if not there or not found:
        raise ValueError("a list of blobs without its end")
    return blobs, _text(found[1] or b"")


def _blob(text: bytes, *, meta: bool) -> BlobInfo | None:
    properties, _, metadata = text.partition(b"<Metadata>")
    found = dict(_WANTED.findall(properties))
    if found.get(b"ResourceType") == b"directory":
        return None
    key = _text(found[b"Name"])
    if b'<Name Encoded="true">' in properties:
        key = unquote(key)
    return BlobInfo(
        key,
        int(found[b"Content-Length"]),
        binascii.a2b_base64(found.get(b"Content-MD5", b""), strict_mode=True).hex(),
        _meta_in(metadata) if meta else {},
        created_ns=_ns(found.get(b"Creation-Time", b"")) if meta else 0,
        tier=found.get(b"AccessTier", b"").decode().lower(),
        rehydrating=b"ArchiveStatus" in found,
        modified_ns=_ns(found.get(b"Last-Modified", b"")),
    )


def _meta_in(text: bytes) -> dict[str, str]:
    pairs = _META.findall(text.partition(b"</Metadata>")[0])
    return {name.decode().lower(): _text(value) for name, value in pairs}


@lru_cache(maxsize=1024)
def _ns(date: bytes) -> int:
    """Return a date in nanoseconds since 1970; it is one of few in a page, as a run stores many blobs in a second."""
    return int(parsedate_to_datetime(date.decode()).timestamp()) * 10**9 if date else 0


def _text(raw: bytes) -> str:
    if b"&" not in raw:
        return raw.decode()
    from html import unescape  # late: it brings a table of 2,000 names

    return unescape(raw.decode())
