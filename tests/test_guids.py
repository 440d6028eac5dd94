"""The GUIDs of a run: valid, never twice, in order, with a beginning of their own, and neighbours in one folder."""

from __future__ import annotations

import uuid
from collections import Counter
from itertools import pairwise

from blobark.guids import GUID_PATTERN, TAG_LENGTH, GuidSource, blob_name
from blobark.stores.paths import path_of

NEIGHBOURS = 64


def test_they_are_uuids_that_ascend_and_begin_alike() -> None:
    source = GuidSource()
    guids = [source.next() for _ in range(5000)]
    assert all(GUID_PATTERN.fullmatch(guid) for guid in guids)
    assert {(one.version, one.variant) for one in map(uuid.UUID, guids)} == {(8, uuid.RFC_4122)}
    assert all(before < after for before, after in pairwise(guids))
    assert len({guid[:TAG_LENGTH] for guid in guids}) == 1
    assert guids[0][:TAG_LENGTH] != GuidSource().next()[:TAG_LENGTH]


def test_neighbours_share_a_folder_and_all_folders_are_used_alike() -> None:
    source = GuidSource()
    folders = [path_of(blob_name("web1", source.next())).split("/")[0] for _ in range(256 * NEIGHBOURS)]
    runs = [folders[start : start + NEIGHBOURS] for start in range(0, len(folders), NEIGHBOURS)]
    assert all(len(set(run)) == 1 for run in runs)
    assert set(Counter(folders).values()) == {NEIGHBOURS}


def test_runs_begin_in_folders_of_their_own() -> None:
    firsts = {GuidSource().next()[-2:] for _ in range(100)}
    assert len(firsts) > 10
