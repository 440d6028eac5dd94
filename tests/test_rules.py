"""The rules against slow, obvious references."""

from __future__ import annotations

import fnmatch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blobark.errors import ConfigError
from blobark.rules import Rules

ROOT = b"/data"

# What globs have trouble with: separators, classes, characters of two bytes, and bytes that are no character.
names = st.text(st.sampled_from("ab.é[]!*?~\n-"), min_size=1, max_size=6).map(str.encode) | st.sampled_from(
    [b"a\xff", b"\xff", b"a\xc3", b"\xe9b", b"a.tmp", b".tmp", b"tmp", b"x.tmp.b"]
)
globs = st.lists(st.sampled_from(["a", "b", ".", "é", "*", "?", "[ab]", "[!a]", "[", "]", "*.tmp", "b*"]), min_size=1)
paths = st.lists(names.filter(lambda name: name not in (b".", b"..")), min_size=1, max_size=4).map(b"/".join)


def text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def matches(name: bytes, glob: str) -> bool:
    return fnmatch.fnmatchcase(text(name), glob)


@given(name=names, patterns=st.lists(globs.map("".join), max_size=4))
@settings(max_examples=300)
def test_skip_files_is_fnmatch_on_the_whole_name(name: bytes, patterns: list[str]) -> None:
    rules = Rules(skip_files=patterns)
    first = next((f"skip_files: {glob}" for glob in patterns if matches(name, glob)), "")
    assert rules.skips(ROOT, b"some/dir/" + name, False) == first
    assert rules.skips(ROOT, name, True) == ""


@given(path=paths, entries=st.lists(st.lists(globs.map("".join), min_size=1, max_size=3).map("/".join), max_size=3))
@settings(max_examples=300)
def test_skip_path_is_fnmatch_component_by_component(path: bytes, entries: list[str]) -> None:
    entries = [entry for entry in entries if "**" not in entry and not {"", ".", ".."} & set(entry.split("/"))]
    entries += [f"/data/{entry}" for entry in entries[:1]]
    rules = Rules(skip_path=entries)

    def named(path: bytes) -> str:
        for entry in entries:
            parts, wanted = path.split(b"/"), entry.removeprefix("/data/").split("/")
            if len(parts) == len(wanted) and all(map(matches, parts, wanted)):
                return f"skip_path: {entry}"
        return ""

    assert rules.skips(ROOT, path, False) == rules.skips(ROOT, path, True) == named(path)
    parts = path.split(b"/")
    above = [named(b"/".join(parts[:depth])) for depth in range(len(parts) - 1, 0, -1)]
    assert rules.skips_below(ROOT, path) == next(filter(None, [*above, named(path)]), "")


def test_skip_path_keeps_to_component_boundaries() -> None:
    rules = Rules(skip_path=["/data/cache/", "logs//old", "*/x", "/elsewhere/a"])
    assert rules.skips(ROOT, b"cache", True) == "skip_path: /data/cache/"
    assert rules.skips(ROOT, b"cache2", True) == ""
    assert rules.skips(ROOT, b"a/cache", True) == ""
    assert rules.skips(b"/other", b"cache", True) == ""
    assert rules.skips(b"/other", b"logs/old", True) == "skip_path: logs//old"
    assert rules.skips(ROOT, b"a/x", False) == "skip_path: */x"
    assert rules.skips(ROOT, b"a/b/x", False) == ""
    assert rules.skips(ROOT, b"a", False) == ""


@pytest.mark.parametrize("entry", ["/data", "/srv/data", "/srv/data/", "/srv", "/s*/d?ta"])
def test_a_skip_path_above_a_root_or_at_it_skips_the_root(entry: str) -> None:
    rules = Rules(skip_path=[entry])
    root = b"/data" if entry == "/data" else b"/srv/data"
    assert rules.skips(root, b"", True) == f"skip_path: {entry}"
    assert rules.skips_below(root, b"a/b") == f"skip_path: {entry}"
    assert rules.skips(b"/srv2", b"", True) == ""


def test_the_root_of_the_file_system_is_a_root_like_others() -> None:
    rules = Rules(skip_path=["/proc", "tmp"])
    assert rules.skips(b"/", b"proc", True) == "skip_path: /proc"
    assert rules.skips(b"/", b"tmp", True) == "skip_path: tmp"
    assert rules.skips_below(b"/", b"proc/1/status") == "skip_path: /proc"
    assert rules.skips(b"/", b"", True) == ""


@pytest.mark.parametrize("entry", ["a/../b", "a/**/b", ".", ""])
def test_an_entry_that_is_no_path_is_refused(entry: str) -> None:
    with pytest.raises(ConfigError):
        Rules(skip_path=[entry])


def test_below_asks_for_the_path_itself_too() -> None:
    rules = Rules(skip_files=["*.tmp"], skip_path=["cache"])
    assert rules.skips_below(ROOT, b"a/b.tmp") == "skip_files: *.tmp"
    assert rules.skips_below(ROOT, b"a.tmp/b") == ""
    assert rules.skips_below(ROOT, b"a.tmp", True) == ""
    assert rules.skips_below(ROOT, b"cache/a/b") == rules.skips_below(ROOT, b"cache") == "skip_path: cache"


def test_a_glob_of_many_stars_does_not_hang() -> None:
    rules = Rules(skip_files=["*a" * 30 + "b"], skip_path=["*a" * 30 + "b"])
    assert rules.skips(ROOT, b"a" * 255, False) == ""


def test_no_rules_match_nothing() -> None:
    rules = Rules()
    assert rules.skips(ROOT, b"a", False) == rules.skips_below(ROOT, b"a") == rules.excludes(b"a", False) == ""


def test_exclude_names_its_pattern() -> None:
    rules = Rules(exclude=["# a comment", "*.pyc", "!keep.pyc", "build/"])
    assert rules.excludes(b"a/b.pyc", False) == "exclude: *.pyc"
    assert rules.excludes(b"a/keep.pyc", False) == ""
    assert rules.excludes(b"a/build", True) == "exclude: build/"
    assert rules.excludes(b"a/build", False) == ""
    assert rules.excludes(b"", True) == ""


@pytest.mark.parametrize("name", [b"a\nb", b"\xff", b"\xc3", "é".encode(), b"a\n"])
def test_exclude_takes_any_name(name: bytes) -> None:
    rules = Rules(exclude=["*.tmp", "cache/x", "/deep/**/x", "a"])
    assert rules.excludes(b"d/" + name + b".tmp", False) == "exclude: *.tmp"
    assert rules.excludes(b"deep/" + name + b"/x", False) == "exclude: /deep/**/x"
    assert rules.excludes(b"d/" + name, False) == ""
    assert rules.excludes(b"d.tmp" + name, False) == ""


def test_the_digest_is_that_of_the_rules() -> None:
    rules = {"skip_files": ["a", "b"], "skip_path": ["/x"], "exclude": ["c"]}
    assert Rules(**rules).digest() == Rules(**rules).digest()
    others = [Rules(), Rules(skip_files=["a"]), Rules(skip_path=["a"]), Rules(exclude=["a"]), Rules(exclude=["a", "b"])]
    assert len({other.digest() for other in (*others, Rules(**rules))}) == 6
    assert Rules(skip_files=["a"]).digest() == Rules(skip_files=("a",)).digest() == "7fb0ed1ea83d2285"
