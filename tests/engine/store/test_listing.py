from __future__ import annotations

import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from dfmtest_dataset import make_dataset
from PIL import Image

from dfm_engine.errors import UsageError
from dfm_engine.store import repeats
from dfm_engine.store.listing import DataListing, list_data
from dfm_engine.store.sampling import content_sha256


def touch(path: Path, content: str | None = None) -> None:
    """A file that nothing here looks into."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(path.as_posix() if content is None else content)


def pictures(folder: Path, count: int = 2, *, level: int | None = None, name: str = "{}") -> None:
    """Pictures of the folder's own; of equal ones with `level`, which changes no size."""
    folder.mkdir(parents=True)
    level = zlib.crc32(folder.as_posix().encode()) % 200 if level is None else level
    for k in range(count):
        shades = np.full((24, 24, 3), level + k, np.uint8)
        Image.fromarray(shades).save(folder / f"{name.format(k)}.bmp")


def facts(listing: DataListing) -> list[tuple[str, str, str, str | None]]:
    return [(clip.path, clip.identity, clip.label, clip.split) for clip in listing.clips]


def test_a_built_data_set_says_everything_itself(tmp_path: Path) -> None:
    made = make_dataset(tmp_path / "set")
    listing = list_data(tmp_path / "set")
    assert (listing.reader, listing.is_built) == ("built", True)
    by_id: dict[str, list] = {}
    for clip in listing.clips:
        by_id.setdefault(clip.clip_id, []).append(clip)
        assert clip.file.is_file()
        assert clip.key == f"{clip.clip_id}.{clip.quality}"
    kept = {"real", "other real", "fake", "other fake", "of a still"}  # not refused, not dropped
    assert set(by_id) == {made[name].clip_id for name in kept}
    raw, c23, c40 = by_id[made["other fake"].clip_id]
    assert [clip.quality for clip in (raw, c23, c40)] == ["raw", "c23", "c40"]
    assert (raw.label, raw.action, raw.identity, raw.split) == ("fake", "nod", "bert", "test")
    assert raw.pair_clip_id == made["other real"].clip_id
    assert raw.clip_frames == 4
    assert c23.sha256 == made["other fake"].files["c23"].sha256


def test_a_built_data_set_gives_the_qualities_that_are_wanted(tmp_path: Path) -> None:
    make_dataset(tmp_path)
    listing = list_data(tmp_path, qualities=("c40", "raw"))
    assert {clip.quality for clip in listing.clips} == {"raw", "c40"}
    assert listing.digest() != list_data(tmp_path).digest()


def test_parts_and_labels_are_read_from_folders(tmp_path: Path) -> None:
    for path in ("train/real/ann/1.mp4", "train/fake/ann/2.mp4", "test/bob/3.mp4"):
        touch(tmp_path / path)
    assert facts(list_data(tmp_path)) == [
        ("train/real/ann/1.mp4", "ann", "real", "train"),
        ("train/fake/ann/2.mp4", "ann", "fake", "train"),
        ("test/bob/3.mp4", "bob", "real", "test"),
    ]


def test_a_folder_named_real_alone_is_no_label(tmp_path: Path) -> None:
    touch(tmp_path / "real/1.mp4")
    touch(tmp_path / "staged/2.mp4")
    assert facts(list_data(tmp_path)) == [
        ("real/1.mp4", "real", "real", None),
        ("staged/2.mp4", "staged", "real", None),
    ]


def test_a_copy_in_another_part_is_left_out_and_told(tmp_path: Path) -> None:
    touch(tmp_path / "train/ann/1.mp4", "the same")
    touch(tmp_path / "test/ann/2.mp4", "the same")
    touch(tmp_path / "test/bob/3.mp4")
    listing = list_data(tmp_path)
    assert [clip.path for clip in listing.clips] == ["train/ann/1.mp4", "test/bob/3.mp4"]
    assert listing.warnings[-1] == (
        "1 clips have the content of another and are left out: 'test/ann/2.mp4 = train/ann/1.mp4'"
    )


def test_a_copy_of_a_folder_of_pictures_is_left_out_and_its_person_is_one(tmp_path: Path) -> None:
    pictures(tmp_path / "train" / "ann#1", level=7)
    pictures(tmp_path / "train" / "ann#2", level=9)
    pictures(tmp_path / "train" / "ann#3", level=9, name="frame{:04d}")  # under other names
    pictures(tmp_path / "test" / "bob#1", level=7)
    pictures(tmp_path / "test" / "bob#2", level=11)
    pictures(tmp_path / "test" / "bob#3", 3, level=7)  # one more of them is another clip
    listing = list_data(tmp_path)
    assert facts(listing) == [
        ("train/ann#1", "ann", "real", "train"),
        ("train/ann#2", "ann", "real", "train"),
        ("test/bob#2", "ann", "real", "test"),
        ("test/bob#3", "ann", "real", "test"),
    ]
    told = "2 clips have the content of another and are left out: 'train/ann#3 = train/ann#2'"
    assert listing.warnings[0].startswith(told)
    assert listing.warnings[1].endswith("are taken as it: 'bob -> ann'")


def test_people_who_share_a_file_are_one_in_all_parts(tmp_path: Path) -> None:
    touch(tmp_path / "train/ann/1.mp4", "the same")
    touch(tmp_path / "test/bob/2.mp4", "the same")
    touch(tmp_path / "test/bob/3.mp4")
    assert facts(list_data(tmp_path)) == [
        ("train/ann/1.mp4", "ann", "real", "train"),
        ("test/bob/3.mp4", "ann", "real", "test"),
    ]


def test_of_folders_of_pictures_those_are_read_that_may_be_equal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path / "a", 2, level=1)
    pictures(tmp_path / "b", 2, level=2)
    pictures(tmp_path / "c", 3, level=1)
    read: list[str] = []

    def remembering(path: Path, kind: str) -> str:
        read.append(path.name)
        return content_sha256(path, "pictures")

    monkeypatch.setattr(repeats, "content_sha256", remembering)
    assert len(list_data(tmp_path).clips) == 3
    assert sorted(read) == ["a", "b"]
    (tmp_path / "b" / "1.bmp").write_bytes(b"another size")
    read.clear()
    assert len(list_data(tmp_path).clips) == 3
    assert read == []


def test_folders_of_pictures_are_clips_of_the_person_before_the_sign(tmp_path: Path) -> None:
    pictures(tmp_path / "train" / "id1#v#9", 3)
    pictures(tmp_path / "train" / "id1#v#10")
    pictures(tmp_path / "test" / "id2#w")
    listing = list_data(tmp_path)
    assert listing.reader == "pictures"
    assert facts(listing) == [
        ("train/id1#v#9", "id1", "real", "train"),
        ("train/id1#v#10", "id1", "real", "train"),
        ("test/id2#w", "id2", "real", "test"),
    ]
    assert [clip.clip_frames for clip in listing.clips] == [3, 2, 2]
    assert len({clip.clip_id for clip in listing.clips}) == 3


def test_one_folder_of_pictures_among_clips_is_no_clip(tmp_path: Path) -> None:
    pictures(tmp_path / "thumbnails")
    for k in range(2):
        touch(tmp_path / f"{k}.mp4")
    assert [clip.path for clip in list_data(tmp_path).clips] == ["0.mp4", "1.mp4"]
    chosen = list_data(tmp_path, reader="pictures")
    assert [clip.path for clip in chosen.clips] == ["thumbnails"]


def test_what_cannot_be_a_clip_is_refused_by_its_place(tmp_path: Path) -> None:
    touch(tmp_path / "train/a/1.mp4")
    (tmp_path / "train/a/2.mp4").mkdir()
    (refused,) = list_data(tmp_path).refused
    assert (refused.path, refused.stage, refused.kind) == (
        "train/a/2.mp4",
        "list",
        "not-a-regular-file",
    )


def test_the_digest_tells_other_clips_and_not_another_place(tmp_path: Path) -> None:
    touch(tmp_path / "one/a/1.mp4", "x")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    assert list_data(tmp_path / "one").digest() == list_data(tmp_path / "two").digest()
    touch(tmp_path / "two/a/1.mp4", "y")
    assert list_data(tmp_path / "one").digest() != list_data(tmp_path / "two").digest()


@pytest.mark.parametrize(
    ("reader", "message"),
    [
        ("flat", r"unknown reader 'flat'; known are auto, .*, pictures"),
        ("pictures", "holds no folder of pictures"),
        ("voxceleb1", "no clip of .* follows the layout voxceleb1"),
    ],
)
def test_a_reader_that_does_not_fit_is_an_error(tmp_path: Path, reader: str, message: str) -> None:
    touch(tmp_path / "a" / "1.mp4")
    with pytest.raises(UsageError, match=message):
        list_data(tmp_path, reader=reader)


def test_data_that_are_not_there_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--data .*absent' does not exist; give a built data set"):
        list_data(tmp_path / "absent")
