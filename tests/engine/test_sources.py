"""Readers of real clips: who is seen, in what order, and what is left out and why."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest
from dfmtest_sources import kinds, put, seen
from hypothesis import given
from hypothesis import strategies as st

from dfm_engine.errors import UsageError
from dfm_engine.readers import files
from dfm_engine.readers.files import natural_key, sha256_file
from dfm_engine.sources import list_sources

# -- layouts ---------------------------------------------------------------------------------


def test_voxceleb1_tree_takes_the_speaker_from_any_level_above_it(tmp_path: Path) -> None:
    put(tmp_path, "dev/mp4/id10002/QanuGhOhb9A/00010.mp4")
    put(tmp_path, "dev/mp4/id10002/QanuGhOhb9A/00002.mp4")
    put(tmp_path, "dev/mp4/id10002/xTV-jFAUKcw/00001.mp4")
    put(tmp_path, "test/vid/id10270/5r0dWxy17C8/00001.mp4")
    put(tmp_path, "dev/txt/id10002/QanuGhOhb9A/00002.txt")
    listing = list_sources(tmp_path)
    assert listing.reader == "voxceleb1"
    assert seen(listing, tmp_path) == [
        ("dev/mp4/id10002/QanuGhOhb9A/00002.mp4", "id10002"),
        ("dev/mp4/id10002/QanuGhOhb9A/00010.mp4", "id10002"),
        ("dev/mp4/id10002/xTV-jFAUKcw/00001.mp4", "id10002"),
        ("test/vid/id10270/5r0dWxy17C8/00001.mp4", "id10270"),
    ]
    assert {clip.dataset for clip in listing.clips} == {"voxceleb1"}
    assert listing.ignored == 1
    deep = list_sources(tmp_path / "dev/mp4", reader="voxceleb1")
    assert [clip.identity for clip in deep.clips] == ["id10002"] * 3


def test_fomm_cropped_tree_takes_the_part_before_the_hash_sign(tmp_path: Path) -> None:
    put(tmp_path, "train/id10283#zjWzS-JU_rU#000012#000140.mp4")
    put(tmp_path, "test/id10283#zjWzS-JU_rU#000200#000300.mp4")
    put(tmp_path, "test/id10291#TMCTm7GxiDE#000181#000465.mp4")
    put(tmp_path, "test/stray.mp4")
    listing = list_sources(tmp_path)
    assert listing.reader == "voxceleb1-fomm"
    assert [clip.identity for clip in listing.clips] == ["id10283", "id10291", "id10283"]
    assert kinds(listing) == {"stray.mp4": "no-identity"}
    assert any("1 clips do not follow the layout voxceleb1-fomm" in w for w in listing.warnings)


def test_a_layout_that_few_files_follow_is_not_taken(tmp_path: Path) -> None:
    put(tmp_path, "ann/id10283#zjWzS-JU_rU#000012#000140.mp4")
    put(tmp_path, "ann/1.mp4")
    listing = list_sources(tmp_path)
    assert (listing.reader, {clip.identity for clip in listing.clips}) == ("folder", {"ann"})
    with pytest.raises(UsageError, match=r"no clip of .* follows the layout voxceleb1,"):
        list_sources(tmp_path, reader="voxceleb1")


def test_adfes_lists_only_what_its_table_names(tmp_path: Path) -> None:
    for name in ("F01-Embarrass-Face Forward.mpeg", "M03-Joy-Face Forward.mpeg", "M03-turn.mpeg"):
        put(tmp_path, name)
    table = put(
        tmp_path,
        "adfes.csv",
        "file,emotion,identity\nM03-Joy-Face Forward.mpeg,joy,M03\n"
        '"F01-Embarrass-Face Forward.mpeg",embarrassment,F01\nF09-gone.mpeg,joy,F09\n',
    )
    listing = list_sources(tmp_path, reader="adfes", identity_csv=table)
    assert seen(listing, tmp_path) == [
        ("F01-Embarrass-Face Forward.mpeg", "F01"),
        ("M03-Joy-Face Forward.mpeg", "M03"),
    ]
    assert listing.reader == "adfes"
    assert not listing.refused
    assert any("'F09-gone.mpeg'" in warning for warning in listing.warnings)
    with pytest.raises(UsageError, match="needs a table"):
        list_sources(tmp_path, reader="adfes")


def test_folder_names_people_by_the_innermost_folder_and_warns_where_it_guesses(
    tmp_path: Path,
) -> None:
    put(tmp_path, "ann/2.mp4")
    put(tmp_path, "ann/day/3.mov")
    put(tmp_path, "solo.webm")
    listing = list_sources(tmp_path)
    assert seen(listing, tmp_path) == [
        ("ann/2.mp4", "ann"),
        ("ann/day/3.mov", "day"),
        ("solo.webm", "solo"),
    ]
    assert any("1 clips lie in no subfolder" in warning for warning in listing.warnings)
    assert any("1 clips lie more than one folder deep" in w for w in listing.warnings)


def test_folder_by_table_refuses_files_that_the_table_does_not_name(tmp_path: Path) -> None:
    put(tmp_path, "clips/a.mp4")
    put(tmp_path, "clips/b.mp4")
    put(tmp_path, "clips/c.mp4")
    text = f"file,identity\nclips/a.mp4,Ann\n{tmp_path / 'clips/b.mp4'},Ben\n"
    listing = list_sources(tmp_path / "clips", identity_csv=put(tmp_path, "who.csv", text))
    assert [clip.identity for clip in listing.clips] == ["Ann", "Ben"]
    assert kinds(listing) == {"c.mp4": "no-identity"}


def test_a_table_outside_the_folder_may_name_files_relative_to_the_folder(tmp_path: Path) -> None:
    put(tmp_path, "clips/a.mp4")
    table = put(tmp_path, "meta/who.csv", "file,identity\na.mp4,Ann\n")
    assert list_sources(tmp_path / "clips", identity_csv=table).clips[0].identity == "Ann"


@pytest.mark.parametrize(
    "expression",
    [r"^(?:raw|new)/([^_]+)_", r"(?P<batch>raw|new)/(?P<identity>[^_]+)_"],
)
def test_folder_by_regex_takes_the_named_or_first_group(tmp_path: Path, expression: str) -> None:
    put(tmp_path, "raw/ann_01.mp4")
    put(tmp_path, "new/ben_01.mp4")
    put(tmp_path, "new/x.mp4")
    listing = list_sources(tmp_path, identity_regex=expression)
    assert [clip.identity for clip in listing.clips] == ["ben", "ann"]
    assert kinds(listing) == {"x.mp4": "no-identity"}


# -- content ---------------------------------------------------------------------------------


def test_equal_content_is_one_clip_and_merges_the_identities_that_share_it(tmp_path: Path) -> None:
    put(tmp_path, "ann/2.mp4", "same")
    put(tmp_path, "ann/10.mp4", "x")
    put(tmp_path, "ben/1.mp4", "same")
    put(tmp_path, "ben/2.mp4", "y")
    put(tmp_path, "cat/1.mp4", "y")
    put(tmp_path, "cat/2.mp4", "z")
    put(tmp_path, "dan/1.mp4", "w")
    listing = list_sources(tmp_path)
    assert seen(listing, tmp_path) == [
        ("ann/2.mp4", "ann"),
        ("ann/10.mp4", "ann"),
        ("ben/2.mp4", "ann"),
        ("cat/2.mp4", "ann"),  # ben and ann share a clip, cat and ben share another
        ("dan/1.mp4", "dan"),
    ]
    assert [(a.name, b.parent.name) for a, b in listing.duplicates] == [
        ("1.mp4", "ann"),
        ("1.mp4", "ben"),
    ]
    assert any("2 identities share content" in warning for warning in listing.warnings)


def test_a_merge_keeps_the_identity_listed_first_whatever_the_order_of_finding(
    tmp_path: Path,
) -> None:
    put(tmp_path, "a/1.mp4", "1")
    put(tmp_path, "b/1.mp4", "2")
    put(tmp_path, "c/1.mp4", "2")
    put(tmp_path, "c/2.mp4", "1")
    assert {clip.identity for clip in list_sources(tmp_path).clips} == {"a"}


def test_hashes_are_of_the_whole_file(tmp_path: Path) -> None:
    data = random.Random(7).randbytes(3 * 2**20 + 17)
    path = tmp_path / "p" / "a.mp4"
    path.parent.mkdir()
    path.write_bytes(data)
    assert list_sources(tmp_path).clips[0].sha256 == hashlib.sha256(data).hexdigest()


def test_the_hash_cache_spares_unchanged_files_and_notices_changed_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, cache = tmp_path / "clips", tmp_path / "cache" / "hashes.json"
    put(root, "p/a.mp4")
    put(root, "p/b.mp4")
    before = {clip.path.name: clip.sha256 for clip in list_sources(root, hash_cache=cache).clips}
    read: list[str] = []

    def spy(path: Path) -> str:
        read.append(path.name)
        return sha256_file(path)

    monkeypatch.setattr(files, "sha256_file", spy)
    again = {clip.path.name: clip.sha256 for clip in list_sources(root, hash_cache=cache).clips}
    assert (again, read) == (before, [])
    status = (root / "p/b.mp4").stat()
    put(root, "p/b.mp4", "P/B.mp4")  # the same size, and the old time put back
    os.utime(root / "p/b.mp4", ns=(status.st_atime_ns, status.st_mtime_ns))
    changed = list_sources(root, hash_cache=cache).clips[1].sha256
    assert (changed, read) == (hashlib.sha256(b"P/B.mp4").hexdigest(), ["b.mp4"])
    cache.write_text('{"x": [1]}')
    assert list_sources(root, hash_cache=cache).clips[1].sha256 == changed


# -- odd folders -----------------------------------------------------------------------------


def test_stills_are_listed_only_where_allowed(tmp_path: Path) -> None:
    put(tmp_path, "p/a.mp4")
    put(tmp_path, "p/b.JPG")
    listing = list_sources(tmp_path)
    assert (len(listing.clips), listing.stills) == (1, 1)
    both = list_sources(tmp_path, allow_stills=True)
    assert [(clip.path.name, clip.is_still) for clip in both.clips] == [
        ("a.mp4", False),
        ("b.JPG", True),
    ]
    (tmp_path / "p/a.mp4").unlink()
    with pytest.raises(UsageError, match=r"no clip in .*1 pictures"):
        list_sources(tmp_path)


def test_files_that_are_no_media_are_counted_and_hidden_ones_never_listed(tmp_path: Path) -> None:
    put(tmp_path, "p/a.mp4")
    put(tmp_path, "p/._a.mp4")
    put(tmp_path, "p/notes.txt")
    put(tmp_path, ".trash/b.mp4")
    listing = list_sources(tmp_path)
    assert ([clip.path.name for clip in listing.clips], listing.ignored) == (["a.mp4"], 2)


def test_symlink_loops_end_and_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    put(outside, "b.mp4")
    root = tmp_path / "root"
    put(root, "p/a.mp4")
    (root / "p/self").symlink_to("..")
    (root / "ann").symlink_to(outside)
    (root / "ann2").symlink_to(outside)
    listing = list_sources(root)
    assert seen(listing, root) == [("ann/b.mp4", "ann"), ("p/a.mp4", "p")]
    assert not listing.duplicates


def test_what_is_no_readable_file_is_refused_with_its_kind(tmp_path: Path) -> None:
    put(tmp_path, "p/a.mp4")
    (tmp_path / "p/loop.mp4").symlink_to("loop.mp4")
    (tmp_path / "p/gone.mp4").symlink_to("missing")
    os.mkfifo(tmp_path / "p/pipe.mp4")
    put(tmp_path, "directory.mp4/0001.mp4")
    listing = list_sources(tmp_path)
    assert [clip.path.name for clip in listing.clips] == ["a.mp4"]
    assert kinds(listing) == {
        "directory.mp4": "not-a-regular-file",
        "gone.mp4": "not-found",
        "loop.mp4": "not-a-regular-file",
        "pipe.mp4": "not-a-regular-file",
    }


def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "p/a.mp4")
    bad = put(tmp_path, "p/b.mp4")

    def deny(path: Path) -> str:
        if path == bad:
            raise files.os_error(path, PermissionError(13, "Permission denied"))
        return sha256_file(path)

    monkeypatch.setattr(files, "sha256_file", deny)  # chmod would not stop a test run by root
    assert kinds(list_sources(tmp_path)) == {"b.mp4": "permission"}


def test_odd_names_are_listed_and_identities_are_valid_text(tmp_path: Path) -> None:
    person = tmp_path / os.fsdecode(b"J\xf6rg")  # Latin-1
    put(person, "line\nbreak.mp4", "1")
    put(person, os.fsdecode(b"bad\xff.mp4"), "2")
    put(tmp_path, "Zoe\u0308/-dash.MP4", "3")  # decomposed, as some systems write it
    put(tmp_path, "Zo\u00eb/quote'$HOME;.mp4", "4")
    listing = list_sources(tmp_path)
    assert {clip.identity for clip in listing.clips} == {"J\\udcf6rg", "Zo\u00eb"}
    assert {clip.sha256 for clip in listing.clips} == {
        hashlib.sha256(text).hexdigest() for text in (b"1", b"2", b"3", b"4")
    }
    for warning in (*listing.warnings, *map(str, listing.refused)):
        warning.encode("utf-8")


def test_an_empty_or_absent_folder_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no clip in"):
        list_sources(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        list_sources(tmp_path / "absent")
    with pytest.raises(UsageError, match="is a file"):
        list_sources(put(tmp_path, "a.mp4"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reader": "voxceleb"}, "unknown reader 'voxceleb'; known are auto, voxceleb1"),
        ({"identity_csv": "who.csv", "identity_regex": "(.)"}, "give one of them"),
        ({"reader": "voxceleb1", "identity_regex": "(.)"}, "takes identities from the paths"),
        ({"identity_regex": "("}, "does not compile"),
        ({"identity_regex": "a"}, "has no group"),
        ({"identity_regex": "(zzz)"}, "no identity for any of the 1 clips"),
    ],
)
def test_wrong_arguments_are_named(tmp_path: Path, arguments, message: str) -> None:
    put(tmp_path, "p/a.mp4")
    with pytest.raises(UsageError) as caught:
        list_sources(tmp_path, **arguments)
    assert message in str(caught.value)


@given(st.permutations(["a1", "a2", "a10", "A3", "a02", "b/1", "b/2/x", "b/10", "a"]))
def test_natural_order_is_total_and_independent_of_the_start(names: list[str]) -> None:
    ordered = ["a", "a1", "a02", "a2", "A3", "a10", "b/1", "b/2/x", "b/10"]
    assert sorted(names, key=natural_key) == ordered
