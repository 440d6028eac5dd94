"""Requests that are not made through the SDK: what is signed, and what is read of the answers."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from urllib.parse import parse_qs
from xml.sax.saxutils import escape

import pytest
from azure.storage.blob import ContainerSasPermissions, generate_container_sas
from hypothesis import given
from hypothesis import strategies as st

from blobark.stores.azure_pages import archived_in, blobs_in, uncommitted_in
from blobark.stores.azure_rest import _crc64
from blobark.stores.azure_sas import container_sas

KEY = base64.b64encode(b"a key of an account").decode()
BLOB = (
    "<Blob><Name>{name}</Name><Properties><Creation-Time>Sat, 21 Nov 2026 10:00:00 GMT</Creation-Time>"
    "<Content-Length>{size}</Content-Length><Content-Type>application/octet-stream</Content-Type>"
    "<Content-MD5>{md5}</Content-MD5><AccessTier>{tier}</AccessTier></Properties>{meta}</Blob>"
)
PAGE = (
    '<?xml version="1.0" encoding="utf-8"?><EnumerationResults ServiceEndpoint="https://a/" ContainerName="c">'
    "<Prefix>web1_</Prefix><MaxResults>5000</MaxResults><Blobs>{blobs}</Blobs>{end}</EnumerationResults>"
)


def page(*blobs: str, marker: str = "") -> bytes:
    end = f"<NextMarker>{escape(marker)}</NextMarker>" if marker else "<NextMarker />"
    return PAGE.format(blobs="".join(blobs), end=end).encode()


def blob(name: str = "a", size: str = "5", md5: str = "", tier: str = "Hot", meta: str = "") -> str:
    return BLOB.format(name=escape(name), size=size, md5=md5, tier=tier, meta=meta)


def test_a_sas_is_the_one_that_the_sdk_makes() -> None:
    until = datetime(2026, 11, 21, 12, 30, 15, tzinfo=UTC)
    ours = container_sas("account", KEY, "box", rights="rwl", until_ns=int(until.timestamp()) * 10**9)
    rights = ContainerSasPermissions(read=True, write=True, list=True)
    theirs = generate_container_sas("account", "box", account_key=KEY, permission=rights, expiry=until)
    ours_values, theirs_values = parse_qs(ours), parse_qs(theirs)
    assert {ours_values.pop("sv")[0] >= "2020-12-06", theirs_values.pop("sv")[0] >= "2020-12-06"} == {True}
    assert ours_values.pop("sig") != theirs_values.pop("sig")  # the version is signed too; an emulator checks ours
    assert ours_values == theirs_values


@given(st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1), st.text(min_size=1))
def test_names_and_markers_come_as_they_are(name: str, marker: str) -> None:
    marker = "".join(c for c in marker if c.isprintable()) or "x"
    found, following = blobs_in(page(blob(name), marker=marker))
    assert [info.key for info in found] == [name]
    assert following == marker


def test_what_a_page_tells_of_blobs() -> None:
    md5 = base64.b64encode(bytes(range(16))).decode()
    meta = "<Metadata><Name>x</Name><Blobark_Entry>a&amp;b</Blobark_Entry></Metadata>"
    folder = "<Blob><Name>f</Name><Properties><ResourceType>directory</ResourceType></Properties></Blob>"
    encoded = '<Blob><Name Encoded="true">%41</Name><Properties><Content-Length>0</Content-Length></Properties></Blob>'
    found, marker = blobs_in(page(blob("a", md5=md5, meta=meta), folder, encoded), meta=True)
    assert marker == ""
    assert [info.key for info in found] == ["a", "A"]
    assert (found[0].size_bytes, found[0].md5, found[0].tier) == (5, bytes(range(16)).hex(), "hot")
    assert dict(found[0].meta) == {"name": "x", "blobark_entry": "a&b"}
    assert found[0].created_ns == int(datetime(2026, 11, 21, 10, tzinfo=UTC).timestamp()) * 10**9
    assert [dict(info.meta) for info in blobs_in(page(blob("a", meta=meta)))[0]] == [{}]


def test_archived_blobs_are_picked_out() -> None:
    assert archived_in(page(blob("a"), blob("b"), marker="m")) == ([], "m")
    found, marker = archived_in(page(blob("a"), blob("<AccessTier>Archive<", tier="Archive")))
    assert ([info.key for info in found], marker) == (["<AccessTier>Archive<"], "")


@pytest.mark.parametrize("empty", ["<Blobs />", "<Blobs/>", "<Blobs></Blobs>"])
def test_an_empty_page(empty: str) -> None:
    text = f"<EnumerationResults>{empty}<NextMarker /></EnumerationResults>".encode()
    assert blobs_in(text) == ([], "")
    assert archived_in(text) == ([], "")


WHOLE = page(blob("a"), blob("b"), marker="more")


@pytest.mark.parametrize(
    "damaged",
    [
        *(WHOLE[:end] for end in range(0, len(WHOLE), 7)),
        WHOLE.replace(b"</Blob></Blobs>", b"</Blobs>"),
        WHOLE.replace(b"<Name>a<", b"<Name><"),
        WHOLE.replace(b"<Content-Length>5<", b"<Content-Length>five<"),
        WHOLE.replace(b"<Content-Length>5</Content-Length>", b""),
        WHOLE.replace(b"<Content-MD5><", b"<Content-MD5>?<"),
        WHOLE.replace(b"<Name>a<", b"<Name><![CDATA[a]]><"),
        b"<html>a proxy has no idea</html>",
    ],
)
def test_a_damaged_page_is_no_page(damaged: bytes) -> None:
    with pytest.raises(ValueError):
        blobs_in(damaged)


@pytest.mark.parametrize(
    ("data", "number"),
    [
        (b"", 0),
        (b"Hello World!", 208604604655264165),
        (b"123456789!@#$%^&*()", 2153758901452455624),
        (
            b"This is a test where the data is longer than 64 characters so that we can test that code path.",
            2736107658526394369,
        ),
    ],
)
def test_a_crc_is_the_one_that_the_services_own_libraries_compute(data: bytes, number: int) -> None:
    """The numbers are those of the tests of Azure's SDKs for .NET and Java."""
    assert int.from_bytes(base64.b64decode(_crc64(data)), "little") == number
    assert _crc64(memoryview(b"x" + data)[1:]) == _crc64(data)


def test_blocks_that_were_staged() -> None:
    name = base64.b64encode(b"block").decode()
    block = f"<Block><Name>{name}</Name><Size>5</Size></Block>"
    text = (
        f"<BlockList><CommittedBlocks>{block}</CommittedBlocks><UncommittedBlocks>{{}}</UncommittedBlocks></BlockList>"
    )
    assert uncommitted_in(text.format(block).encode()) == ["block"]
    assert uncommitted_in(text.format("").encode()) == []
    assert uncommitted_in(b"<BlockList><CommittedBlocks /><UncommittedBlocks /></BlockList>") == []
    with pytest.raises(ValueError, match="without its end"):
        uncommitted_in(text.format(block).encode()[:-5])
