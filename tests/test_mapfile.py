"""The map: what is written comes back, and each way in which a map can be wrong has its line."""

from __future__ import annotations

import errno
import json
import os
import tempfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import example, given, settings
from hypothesis import strategies as st

from blobark.errors import ConfigError, Fatal
from blobark.mapfile import MapItem, MapReader, check_unique, digest_of, write
from blobark.repeats import Repeats

GUID = "0f8fad5b-d9cb-469f-a165-70867728950e"
OTHER = "7c9e6679-7425-40de-944b-e07fc1f90ae7"
KEY = f"web1_{GUID}"

components = st.binary(min_size=1, max_size=12).map(lambda raw: raw.replace(b"/", b"_").replace(b"\0", b"_"))
absolute = st.lists(components.filter(lambda raw: raw not in (b".", b"..")), min_size=1, max_size=4).map(
    lambda parts: b"/" + b"/".join(parts)
)
keys = st.builds(
    lambda server, guid: f"{server}_{guid}" if server else str(guid), st.sampled_from(["", "web1", "a.b-c"]), st.uuids()
)


def read(path: Path) -> list[MapItem]:
    return list(check_unique(MapReader(path)))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "map.json"


# Round trips


@given(
    pairs=st.lists(st.tuples(keys, absolute, st.booleans()), unique_by=(lambda t: t[0], lambda t: t[1]), max_size=20)
)
@example(pairs=[(KEY, b'/\xff/\xc3\xa9/\xed\xb2\x80/\n"\\\x7f\x01', False), (OTHER, "/é/\U0001f600".encode(), True)])
@settings(max_examples=100, deadline=None)
def test_every_path_comes_back(pairs: list[tuple[str, bytes, bool]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "map.json")
        given = [(key, path + b"/" if folder else path) for key, path, folder in pairs]
        written = write(file, given)
        assert written.pairs == len(pairs)
        assert written.digest == digest_of(file) == blake3(file.read_bytes()).hexdigest()
        # by another way: the standard library, which everybody else reads it with
        assert [(key, os.fsencode(path)) for key, path in json.loads(file.read_bytes()).items()] == given
        items = read(file)
        assert [(item.key, item.path, item.placeholder) for item in items] == pairs
        assert all(f"{item.server}_{item.guid}".removeprefix("_") == item.key for item in items)


@given(
    pairs=st.dictionaries(keys, absolute, max_size=20), ascii_only=st.booleans(), indent=st.sampled_from([None, 0, 4])
)
@settings(max_examples=50, deadline=None)
def test_what_the_standard_library_writes_is_read(
    pairs: dict[str, bytes], ascii_only: bool, indent: int | None
) -> None:
    texts = {key: os.fsdecode(path) for key, path in pairs.items()}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "map.json")
        made = json.dumps(texts, ensure_ascii=ascii_only or any(not text.isprintable() for text in texts.values()))
        if indent is not None:
            made = json.dumps(texts, indent=indent)
        file.write_bytes(made.encode())
        assert {item.key: item.path for item in MapReader(file)} == pairs


def test_a_map_is_one_pair_a_line(file: Path) -> None:
    write(file, [(KEY, b"/a b"), (OTHER, "/é".encode()), (f"x_{OTHER}", b"/\xff")])
    expected = f'{{\n  "{KEY}": "/a b",\n  "{OTHER}": "/é",\n  "x_{OTHER}": "/\\udcff"\n}}\n'
    assert file.read_text() == expected


def test_a_map_of_nothing(file: Path) -> None:
    assert write(file, []).pairs == 0
    assert file.read_text() == "{}\n"
    assert read(file) == []


@pytest.mark.parametrize("text", ["{}", " \n{ \n} \n", "\ufeff{}"])
def test_other_maps_of_nothing(file: Path, text: str) -> None:
    file.write_text(text)
    assert read(file) == []


def test_the_file_is_private_and_nothing_else_is_left(file: Path) -> None:
    file.write_text("old")
    file.chmod(0o644)
    write(file, [(KEY, b"/a")])
    assert file.stat().st_mode & 0o777 == 0o600
    assert os.listdir(file.parent) == ["map.json"]


def test_the_folder_is_made(tmp_path: Path) -> None:
    write(tmp_path / "a/b/map.json", [])
    assert (tmp_path / "a/b").stat().st_mode & 0o777 == 0o700


def test_an_error_of_the_pairs_leaves_the_old_map(file: Path) -> None:
    file.write_text("old")

    def pairs() -> Iterator[tuple[str, bytes]]:
        yield KEY, b"/a"
        raise OSError(errno.EIO, "the catalog's own")

    with pytest.raises(OSError, match="the catalog's own"):
        write(file, pairs())
    assert file.read_text() == "old"
    assert os.listdir(file.parent) == ["map.json"]


def test_a_map_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Fatal, match=r"file/map\.json: the map cannot be written: File exists"):
        write(tmp_path / "file/map.json", [])
    (tmp_path / "folder").mkdir()
    (tmp_path / "nowhere").symlink_to("/dev/null")
    with pytest.raises(Fatal, match="nowhere: the map cannot be written: it is no file"):
        write(tmp_path / "nowhere", [])
    assert (tmp_path / "nowhere").is_char_device()
    (tmp_path / "link").symlink_to("file")
    write(tmp_path / "link", [])
    assert (tmp_path / "link").readlink() == Path("file")
    assert (tmp_path / "file").read_text() == "{}\n"
    with pytest.raises(Fatal, match="folder: the map cannot be written: Is a directory"):
        write(tmp_path / "folder", [])
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "link", "nowhere"]


@pytest.mark.parametrize(
    ("key", "path", "item"),
    [
        (GUID, "/a", MapItem(GUID, "", GUID, b"/a", False)),
        (KEY, "/a", MapItem(KEY, "web1", GUID, b"/a", False)),
        (KEY + "/", "/a", MapItem(KEY + "/", "web1", GUID, b"/a", True)),
        (KEY + "/", "/a/", MapItem(KEY + "/", "web1", GUID, b"/a", True)),
        (GUID, "/a/", MapItem(GUID, "", GUID, b"/a", True)),
        (
            f"My_Old.Host_{GUID.upper()}",
            "/a",
            MapItem(f"My_Old.Host_{GUID.upper()}", "My_Old.Host", GUID, b"/a", False),
        ),
    ],
)
@pytest.mark.parametrize("escape", [False, True])
def test_the_forms_of_a_key(file: Path, key: str, path: str, item: MapItem, escape: bool) -> None:
    shown = "".join(f"\\u{ord(char):04x}" for char in path) if escape else path
    file.write_text(f'{{"{key}":"{shown}"}}')
    assert read(file) == [item]


# Maps that are wrong

MISTAKES = {
    "": "1: the map is empty, expected a JSON object",
    " \n\n": "3: the map is empty, expected a JSON object",
    "hello": "1: expected a JSON object { ... }",
    "null": "1: expected a JSON object { ... }",
    '\n["a"]': "2: expected a JSON object { ... }",
    "[" * 100_000: "1: expected a JSON object { ... }",
    "{": "1: the map is cut short: expected a key in double quotes after the last { or comma",
    '{"KEY"': "1: the map is cut short: expected a colon after the key 'KEY'",
    '{"KEY":\n': "2: the map is cut short: expected a path in double quotes for the key 'KEY'",
    '{"KEY": "/a': "1: a path for the key 'KEY' is cut short",
    '{"KEY": "/a\\': "1: a path for the key 'KEY' is cut short",
    '{"KEY": "/a"': "1: the map is cut short: expected a comma or } after the path of 'KEY'",
    '{"KEY": "/a",\n': "2: the map is cut short: expected a key in double quotes after the last { or comma",
    '{"KEY": "/a",\n"we': "2: a key after the last { or comma is cut short",
    '{"KEY": "/a",}': "1: not JSON: expected a key in double quotes after the last { or comma",
    '{"KEY": "/a"} x': "1: there is something after the closing }",
    '{"KEY": "/a"}\n{"OTHER": "/b"}': "2: there is something after the closing }",
    "{}\n]": "2: there is something after the closing }",
    '{"KEY": "/a"\n"OTHER": "/b"}': "2: not JSON: expected a comma or } after the path of 'KEY'",
    '{"KEY" "/a"}': "1: not JSON: expected a colon after the key 'KEY'",
    '{KEY: "/a"}': "1: not JSON: expected a key in double quotes after the last { or comma",
    '{"KEY": NaN}': "1: not JSON: expected a path in double quotes for the key 'KEY'",
    '{"KEY": 1}': "1: not JSON: expected a path in double quotes for the key 'KEY'",
    '{"KEY": null}': "1: not JSON: expected a path in double quotes for the key 'KEY'",
    '{"KEY": ' + '{"a":' * 100_000: "1: not JSON: expected a path in double quotes for the key 'KEY'",
    '{"KEY": "/a\nb"}': "1: a path for the key 'KEY' is broken by a control character",
    '{"KEY": "/\\q"}': "1: the path holds an escape that JSON does not know",
    '{"KEY": "/\\u12"}': "1: the path holds an escape that JSON does not know",
    '{"KEY": "/\\ud800"}': "1: the path holds half a surrogate pair",
    '{"KEY\xff": "/a"}': "1: the key is not UTF-8",
    '{"KEY": "/a\xff"}': "1: the path is not UTF-8",
    '{"KEY": "/\xed\xb3\xbf"}': "1: the path is not UTF-8",
    '{"": "/a"}': "1: '': expected <guid> or <server>_<guid> as the key",
    '{"web1": "/a"}': "1: 'web1': expected <guid> or <server>_<guid> as the key",
    '{"KEY0": "/a"}': "1: 'KEY0': expected <guid> or <server>_<guid> as the key",
    '{"../KEY": "/a"}': "1: '../KEY': expected <guid> or <server>_<guid> as the key",
    '{"_GUID": "/a"}': "1: '_GUID': expected <guid> or <server>_<guid> as the key",
    '{"{GUID}": "/a"}': "1: '{GUID}': expected <guid> or <server>_<guid> as the key",
    '{"a\\nb": "/a"}': "1: 'a\\nb': expected <guid> or <server>_<guid> as the key",
    '{\n"KEY": ""}': "2: 'KEY': expected a path below /, got ''",
    '{"KEY": "/"}': "1: 'KEY': expected a path below /, got '/'",
    '{"KEY": "a"}': "1: 'KEY': expected an absolute path, got 'a'",
    '{"KEY": "a/b"}': "1: 'KEY': expected an absolute path, got 'a/b'",
    '{"KEY": "C:\\\\a"}': "1: 'KEY': expected an absolute path, got 'C:\\\\a'",
    '{"KEY": "/a/../b"}': "1: 'KEY': expected a path without empty, . and .. components, got '/a/../b'",
    '{"KEY": "/.."}': "1: 'KEY': expected a path without empty, . and .. components, got '/..'",
    '{"KEY": "/../"}': "1: 'KEY': expected a path without empty, . and .. components, got '/../'",
    '{"KEY": "/a/."}': "1: 'KEY': expected a path without empty, . and .. components, got '/a/.'",
    '{"KEY": "//a"}': "1: 'KEY': expected a path without empty, . and .. components, got '//a'",
    '{"KEY": "/a//"}': "1: 'KEY': expected a path without empty, . and .. components, got '/a//'",
    '{"KEY": "/a/\\u002e\\u002e/b"}': "1: 'KEY': expected a path without empty, . and .. components, got '/a/../b'",
    '{"KEY": "/a\\u0000b"}': "1: 'KEY': expected a path without NUL, got '/a\\x00b'",
    '{"KEY": "/' + "a" * 256 + '"}': "1: 'KEY': expected names of at most 255 bytes, got '/" + "a" * 199 + "...'",
    '{"KEY": "/a",\n"KEY": "/b"}': " KEY: the key is there twice, first for KEY",
    '{"KEY": "/a",\n"WEB_GUID/": "/b"}': " WEB_GUID/: the key is there twice, first for KEY",
    '{"KEY": "/a",\n"OTHER": "/a"}': " OTHER: '/a' is there twice, first for KEY",
    '{"KEY": "/a",\n"OTHER/": "/\\u0061/"}': " OTHER/: '/a' is there twice, first for KEY",
}


def filled(text: str) -> str:
    named = {"WEB_GUID": f"web1_{GUID.upper()}", "KEY": KEY, "OTHER": OTHER, "GUID": GUID}
    for name, value in named.items():
        text = text.replace(name, value)
    return text


@pytest.mark.parametrize("text", MISTAKES, ids=range(len(MISTAKES)))
def test_each_mistake_has_its_line(file: Path, text: str) -> None:
    file.write_bytes(filled(text).encode("latin-1"))
    with pytest.raises(ConfigError) as raised:
        read(file)
    assert raised.value.message == f"{file}:{filled(MISTAKES[text])}"


def test_a_map_is_read_to_where_it_goes_wrong(file: Path) -> None:
    file.write_text(f'{{"{KEY}": "/a",\n"{OTHER}": "b"}}')
    items = iter(MapReader(file))
    assert next(items).path == b"/a"
    with pytest.raises(ConfigError, match=":2: "):
        next(items)


def test_equal_keys_are_both_delivered(file: Path) -> None:
    file.write_text(f'{{"{KEY}": "/a", "{KEY}": "/b"}}')
    assert [item.path for item in MapReader(file)] == [b"/a", b"/b"]


def test_many_mistakes_are_a_hundred_lines(file: Path) -> None:
    write(file, [(GUID, b"/a")] * 1000)
    with pytest.raises(ConfigError) as raised:
        read(file)
    assert len(raised.value.message.splitlines()) == 100


def test_a_map_that_is_not_there(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"map\.json: no such map"):
        read(file)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read(file.parent)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        digest_of(file)


@pytest.mark.parametrize(
    "text", [f'{{"{KEY}": "/' + "a/" * (1 << 20), '{"' + "a" * (1 << 21), '{"KEY"' + " " * (1 << 22)]
)
def test_a_pair_without_end_is_not_waited_for(file: Path, text: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match="1: "):
        read(file)


# Sizes


def many(count: int) -> Iterator[tuple[str, bytes]]:
    for number in range(count):
        accent = b"\xc3\xa9" if number % 3 else b"\xff"
        yield f"web1_{number:08x}-0000-8000-8000-{number:012x}", b"/d/%d/%b/%d" % (number % 1000, accent, number)


def test_pairs_may_lie_anywhere_in_a_large_file(file: Path) -> None:
    written = write(file, many(40_000))
    assert written.pairs == 40_000
    assert file.stat().st_size > 2 << 20
    assert [(item.key, item.path) for item in read(file)] == list(many(40_000))


def test_reading_takes_little_memory(file: Path) -> None:
    write(file, ((key, path + b"/long-name" * 250) for key, path in many(6000)))
    assert file.stat().st_size > 14 << 20
    tracemalloc.start()
    try:
        assert sum(1 for _ in check_unique(MapReader(file))) == 6000
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@given(values=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 50), max_size=60), room=st.integers(1, 20))
@settings(deadline=None)
def test_repeats_are_found_on_disk_as_in_memory(values: list[int], room: int) -> None:
    with tempfile.TemporaryFile() as spill:
        repeats = Repeats(spill, in_memory=room)
        for value in values:
            repeats.add(value)
        assert repeats.found(100) == {value for value in values if values.count(value) > 1}
