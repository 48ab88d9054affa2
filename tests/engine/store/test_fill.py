from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from dfmtest_dataset import make_dataset
from PIL import Image

from dfm_engine.columns import read_table
from dfm_engine.errors import EnvironmentUnfit, InputError, MediaError, ShortfallError, UsageError
from dfm_engine.interrupts import Interrupted, StopRequest
from dfm_engine.jobs import RunFolder
from dfm_engine.manifest import read_manifest
from dfm_engine.media.cropping import BoxCropper
from dfm_engine.media.decode import read_frames
from dfm_engine.quarantine import QuarantineRow, read_quarantine
from dfm_engine.recipe import Limits
from dfm_engine.store import dali, fill, planning
from dfm_engine.store.fill import PrepareOptions, choose_sampler, run_prepare
from dfm_engine.store.frames import Store
from dfm_engine.store.index import COLUMNS
from dfm_engine.store.listing import list_data
from dfm_engine.store.meta import Layout
from dfm_engine.store.sampler import ClipToSample, FrameSampler, Refused, Sampled
from dfm_engine.store.sampling import sample_clip
from dfm_engine.store.summary import PrepareSummary

SIZE = 32


class InProcess:
    """A sampler without processes; dies, or sees a signal, when its turn comes."""

    name: Literal["pyav", "dali"] = "pyav"

    def __init__(self, layout: Layout = "rgb24", *, die_at: int = -1, parts: int = 2) -> None:
        self.layout, self.die_at, self.parts = layout, die_at, parts
        self.stop: StopRequest | None = None
        self.begun = 0

    def sample(self, clips: Iterable[ClipToSample]) -> Iterator[Sampled | Refused]:
        for clip in clips:
            self.begun += 1
            if self.begun == self.die_at:
                if self.stop is None:
                    raise KeyboardInterrupt  # as sudden as a process can end without its end
                self.stop.signum = 2
            made = sample_clip(
                clip.path,
                kind=clip.kind,
                clip_frames=clip.clip_frames,
                wanted=clip.wanted.tolist(),
                box=clip.box,
                sha256=clip.sha256,
                size_px=SIZE,
                layout=self.layout,
                limits=Limits(),
            )
            try:
                part: list[Any] = []
                for frame in made.frames:
                    if len(part) == self.parts:
                        yield Sampled(clip=clip, frames=np.stack(part), is_last=False)
                        part = []
                    part.append(frame)
                yield Sampled(clip=clip, frames=np.stack(part), sha256=made.sha256())
            except MediaError as error:
                yield Refused(clip=clip, error=error)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built") / "set"
    make_dataset(out)
    return out


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "SHARD_ROWS", 8)


def prepare(
    data: Path, out: Path, *, sampler: FrameSampler | None = None, **changes: Any
) -> PrepareSummary:
    stop = changes.pop("stop", None)
    options = PrepareOptions(data=data, out=out, **{"frames": 2, "size_px": SIZE} | changes)
    sampler = sampler or InProcess(options.layout)
    return run_prepare(options, sampler=sampler, workers=1, stop=stop, progress=False)


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def picture_clip(folder: Path, count: int, *, seed: int = 0) -> None:
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 40, 48, 3), dtype=np.uint8)
    for k, picture in enumerate(pixels):
        Image.fromarray(picture).save(folder / f"{k}.png")


def test_a_store_holds_the_frames_and_the_facts_of_its_data_set(
    built: Path, tmp_path: Path
) -> None:
    summary = prepare(built, tmp_path)
    store = Store.open(tmp_path)
    store.verify()
    manifest = {
        (row["clip_id"], row["quality"]): row for row in read_manifest(built / "manifest.parquet")
    }
    assert summary.exit_code == 0
    assert summary.clips == len(store.index.clips) == 15
    assert summary.rows == store.rows == 30
    assert len(store.meta.shards) == 4
    for clip in store.index.clips:
        row = manifest[clip.clip_id, clip.quality]
        for name in ("label", "action", "identity", "split", "pair_clip_id", "sha256", "path"):
            assert getattr(clip, name) == row[name], name
        decoded = list(read_frames(built / row["path"], fps=None))
        numbers = store.index.frame[clip.first_row : clip.first_row + clip.frames]
        assert numbers.tolist() == ([0, 2] if len(decoded) == 3 else [1, 3])
        frames = store.read(np.asarray(clip.rows))
        np.testing.assert_array_equal(frames, np.stack([decoded[k] for k in numbers]))
    assert read_quarantine(tmp_path / "quarantine.parquet") == []
    assert Image.open(tmp_path / "sheet.png").size[0] > 100


def test_both_labels_give_frames_of_equal_numbers(built: Path, tmp_path: Path) -> None:
    prepare(built, tmp_path)
    index = Store.open(tmp_path).index
    by_id = {(clip.clip_id, clip.quality): clip for clip in index.clips}
    pairs = [clip for clip in index.clips if clip.pair_clip_id]
    assert len(pairs) == 6
    for clip in pairs:
        twin = by_id[clip.pair_clip_id or "", clip.quality]
        assert index.frame[list(clip.rows)].tolist() == index.frame[list(twin.rows)].tolist()


def test_a_clip_shorter_than_asked_for_gives_all_it_has(built: Path, tmp_path: Path) -> None:
    summary = prepare(built, tmp_path / "4", frames=4)
    assert summary.shorter == 9
    counts = {clip.clip_frames: clip.frames for clip in Store.open(tmp_path / "4").index.clips}
    assert counts == {3: 3, 4: 4}
    everything = prepare(built, tmp_path / "all", frames=0)
    assert (everything.shorter, everything.rows) == (0, summary.rows)


def test_an_i420_store_is_half_as_large(built: Path, tmp_path: Path) -> None:
    whole = prepare(built, tmp_path / "rgb")
    half = prepare(built, tmp_path / "i420", layout="i420", qualities=("raw", "c23", "c40"))
    assert 2 * half.size_bytes == whole.size_bytes == 30 * SIZE * SIZE * 3
    assert Store.open(tmp_path / "i420").read(np.array([3])).shape == (1, 48, 32)
    assert (tmp_path / "i420" / "sheet.png").is_file()


def test_a_finished_store_is_left_alone(built: Path, tmp_path: Path) -> None:
    prepare(built, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = InProcess()
    summary = prepare(built, tmp_path, sampler=again)
    assert (summary.made_rows, summary.rows, again.begun) == (0, 30, 0)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_run_cut_anywhere_goes_on_to_the_same_bytes(built: Path, tmp_path: Path) -> None:
    prepare(built, tmp_path / "whole")
    whole = contents(tmp_path / "whole")
    for die_at in (1, 3, 5, 9, 15):
        out = tmp_path / str(die_at)
        with pytest.raises(KeyboardInterrupt):
            prepare(built, out, sampler=InProcess(die_at=die_at))
        with pytest.raises(InputError, match="is not finished"):
            Store.open(out)
        # What a kill leaves beside that: a part of a shard, and a shard without its record.
        (out / "shards").mkdir(exist_ok=True)
        (out / "shards" / "00002.u8.tmp-99").write_bytes(b"part")
        (out / "shards" / "00003.u8").write_bytes(b"old")
        again = InProcess()
        prepare(built, out, sampler=again)
        assert again.begun == 15 - (die_at - 1) // 4 * 4
        assert contents(out) == whole


def test_a_signal_ends_the_run_after_the_shard_under_way(built: Path, tmp_path: Path) -> None:
    sampler, stop = InProcess(die_at=6), StopRequest()
    sampler.stop = stop
    with pytest.raises(Interrupted):
        prepare(built, tmp_path, sampler=sampler, stop=stop)
    assert sampler.begun == 8
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == [
        f"0000{k}.{kind}" for k in (0, 1) for kind in ("json", "u8")
    ]
    assert prepare(built, tmp_path).made_rows == 30 - 16


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 3}, "frames was 2, is now 3"),
        ({"layout": "i420"}, "layout was 'rgb24', is now 'i420'"),
        ({"qualities": ("raw",)}, r"clips was 15, is now 5; clips_sha256 was .*; quality was"),
    ],
)
def test_other_settings_in_the_same_folder_are_refused_by_name(
    built: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    prepare(built, tmp_path)
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=message):
        prepare(built, tmp_path, **changes)
    assert contents(tmp_path) == before


def test_another_decoder_in_the_same_folder_is_refused(built: Path, tmp_path: Path) -> None:
    prepare(built, tmp_path)
    other = InProcess()
    other.name = "dali"
    with pytest.raises(UsageError, match="decode was 'pyav', is now 'dali'"):
        prepare(built, tmp_path, sampler=other)


def test_a_folder_that_holds_something_else_is_not_touched(built: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match=r"holds files and is no frame store .'thesis.tex'"):
        prepare(built, tmp_path)
    assert set(contents(tmp_path)) == {"thesis.tex", ".lock"}


def test_the_data_set_itself_is_no_place_for_its_store(built: Path) -> None:
    before = contents(built)
    with pytest.raises(UsageError, match="is the data itself; name a new folder"):
        prepare(built, built)
    assert contents(built) == before


def test_two_runs_do_not_fill_one_folder(built: Path, tmp_path: Path) -> None:
    class Nested(InProcess):
        def sample(self, clips: Iterable[ClipToSample]) -> Iterator[Sampled | Refused]:
            with pytest.raises(UsageError, match="another run is at work there"):
                prepare(built, tmp_path)
            yield from super().sample(clips)

    assert prepare(built, tmp_path, sampler=Nested()).rows == 30


def test_a_data_set_that_is_being_built_is_not_read(built: Path, tmp_path: Path) -> None:
    recorded = json.loads((built / "run.json").read_bytes())["contract"]
    recipe = (built / "recipe.toml").read_text()
    with (
        RunFolder.open(built, contract=recorded, recipe_toml=recipe),
        pytest.raises(UsageError, match="is under way"),
    ):
        prepare(built, tmp_path)


def test_a_clip_that_was_changed_costs_itself(built: Path, tmp_path: Path) -> None:
    """Also one of which some frames were already in the shard: they are taken out again."""
    data = tmp_path / "data"
    shutil.copytree(built, data)
    whole = prepare(built, tmp_path / "whole", frames=0)
    lost = Store.open(tmp_path / "whole").index.clips[1]
    path = data / lost.path
    path.write_bytes(path.read_bytes()[:-9] + b"different")

    class LateRefusal(InProcess):
        """Finds out at the end."""

        def sample(self, clips: Iterable[ClipToSample]) -> Iterator[Sampled | Refused]:
            for clip in clips:
                if clip.path == path:
                    junk = np.full((2, SIZE, SIZE, 3), 9, np.uint8)
                    yield Sampled(clip=clip, frames=junk, is_last=False)
                    yield Refused(clip=clip, error=MediaError(path, "corrupt", "late"), attempts=1)
                else:
                    yield from super().sample([clip])

    for out, sampler in (("early", InProcess()), ("late", LateRefusal())):
        summary = prepare(data, tmp_path / out, frames=0, sampler=sampler)
        (row,) = read_quarantine(tmp_path / out / "quarantine.parquet")
        assert (row.path, row.stage, row.kind) == (lost.path, "sample", "corrupt")
        assert summary.refused == {"corrupt": 1}
        assert (summary.clips, summary.rows) == (14, whole.rows - lost.frames)
        assert summary.exit_code == 0
        store, first = Store.open(tmp_path / out), Store.open(tmp_path / "whole")
        store.verify()
        rest = np.setdiff1d(np.arange(first.rows), np.asarray(lost.rows))
        np.testing.assert_array_equal(store.read(np.arange(store.rows)), first.read(rest))


def test_a_clip_that_could_not_be_read_for_now_is_tried_again(built: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(built, data)
    path = list_data(data).clips[0].file
    content = path.read_bytes()
    path.unlink()
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        prepare(data, out, sampler=InProcess(die_at=14))
    record = json.loads((out / "shards" / "00000.json").read_bytes())
    assert [refused["kind"] for refused in record["refused"]] == ["not-found"]
    path.write_bytes(content)
    assert prepare(data, out).refused == {}


def test_a_finished_store_takes_in_a_clip_that_can_be_read_again(
    built: Path, tmp_path: Path
) -> None:
    """Its shard grows, so tables of before would give every later row another clip's label."""
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(built, data)
    path = list_data(data).clips[0].file
    content = path.read_bytes()
    path.unlink()
    assert prepare(data, out).refused == {"not-found": 1}
    path.write_bytes(content)
    with pytest.raises(KeyboardInterrupt):
        prepare(data, out, sampler=InProcess(die_at=2))
    with pytest.raises(InputError, match="is not finished"):  # and not a mixture of both
        Store.open(out)
    again = InProcess()
    assert prepare(data, out, sampler=again).refused == {}
    assert again.begun == 4
    prepare(built, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("kind", ["video", "pictures"])
def test_a_clip_that_was_repaired_enters_a_finished_store_and_leaves_its_quarantine(
    built: Path, tmp_path: Path, kind: str
) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    if kind == "video":
        shutil.copytree(built, data)
    else:
        for k in range(6):
            picture_clip(data / f"clip{k}", 2, seed=k)
    file = list_data(data).clips[1].file
    path = file if kind == "video" else file / "0.png"
    content = path.read_bytes()
    path.write_bytes(content[:-40])
    assert prepare(data, out).exit_code == 0
    (row,) = read_quarantine(out / "quarantine.parquet")
    assert (row.path, row.stage) == (str(file.relative_to(data)), "sample")
    asked = InProcess()
    prepare(data, out, sampler=asked)
    assert asked.begun == 0  # what is as damaged as before is not tried again
    path.write_bytes(content)
    assert prepare(data, out, sampler=asked).refused == {}
    assert asked.begun == 4  # its shard
    assert read_quarantine(out / "quarantine.parquet") == []
    prepare(data, tmp_path / "whole")
    assert contents(out) == contents(tmp_path / "whole")


def test_the_quarantine_of_a_finished_store_follows_what_is_found_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no clip changes: what could not be listed has another reason, or is gone."""
    data, out = tmp_path / "data", tmp_path / "out"
    for k in range(2):
        picture_clip(data / f"clip{k}", 2, seed=k)
    listed = list_data(data)
    row = QuarantineRow(path="odd.mp4", stage="list", kind="permission", reason="cannot be read")
    for refused in ((row,), (replace(row, kind="not-a-regular-file"),), ()):
        now = replace(listed, refused=refused)
        monkeypatch.setattr(fill, "list_data", lambda *_, now=now, **__: now)
        asked = InProcess()
        prepare(data, out, sampler=asked)
        assert read_quarantine(out / "quarantine.parquet") == list(refused)
        assert asked.begun == (2 if refused == (row,) else 0)
    Store.open(out).verify()


def test_too_many_unusable_clips_end_with_3_and_a_whole_store(tmp_path: Path) -> None:
    for k in range(6):
        picture_clip(tmp_path / "data" / f"clip{k}", 3, seed=k)
    for k in (1, 4):
        (tmp_path / "data" / f"clip{k}" / "1.png").write_bytes(b"")
    summary = prepare(tmp_path / "data", tmp_path / "out", frames=0)
    assert (summary.clips, summary.exit_code) == (4, 3)
    assert "2 of 6 clips could not be used, more than 20%" in (summary.problem or "")
    store = Store.open(tmp_path / "out")
    store.verify()
    assert [clip.key for clip in store.index.clips] == ["clip0", "clip2", "clip3", "clip5"]


def test_not_one_usable_clip_is_no_store(tmp_path: Path) -> None:
    picture_clip(tmp_path / "data" / "clip", 1)
    (tmp_path / "data" / "clip" / "0.png").write_bytes(b"")
    with pytest.raises(ShortfallError, match=r"not one of 1 clips could be stored; the reasons"):
        prepare(tmp_path / "data", tmp_path / "out")
    with pytest.raises(InputError, match="is not finished"):
        Store.open(tmp_path / "out")


def test_pictures_that_are_not_square_give_their_middle(tmp_path: Path) -> None:
    picture_clip(tmp_path / "data" / "id7#a", 5)
    prepare(tmp_path / "data", tmp_path / "out", frames=1)
    store = Store.open(tmp_path / "out")
    (clip,) = store.index.clips
    assert (clip.identity, clip.clip_frames, clip.frames) == ("id7", 5, 1)
    assert store.index.frame.tolist() == [2]
    picture = np.asarray(Image.open(tmp_path / "data" / "id7#a" / "2.png"))
    expected = BoxCropper(40, 48, (4, 0, 44, 40), SIZE)(picture)
    np.testing.assert_array_equal(store.read(np.array([0]))[0], expected)


def test_the_tables_are_documented_column_by_column(built: Path, tmp_path: Path) -> None:
    prepare(built, tmp_path)
    assert all(column.doc for column in COLUMNS)
    assert len(read_table(COLUMNS, tmp_path / "clips.parquet")) == 15


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": -1}, "--frames is 0 .all. or more, found -1"),
        ({"size_px": 33}, "--size is an even number from 16 to 2048, found 33"),
        ({"size_px": 100_000}, "from 16 to 2048, found 100000"),
        ({"layout": "nv12"}, "--layout takes rgb24 or i420, found 'nv12'"),
        ({"crop": "head"}, "--crop takes auto, face or whole"),
        ({"qualities": ("c24",)}, "--quality takes raw, c23, c40, found 'c24'"),
        ({"qualities": ()}, "--quality takes raw"),
    ],
)
def test_options_that_make_no_sense_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        PrepareOptions(**{"data": Path("a"), "out": Path("b"), "frames": 1} | changes)


def test_the_decoder_is_chosen_by_word_layout_and_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(decode: str, layout: Layout = "rgb24", device: str = "auto") -> FrameSampler:
        return choose_sampler(decode, size_px=SIZE, layout=layout, workers=1, device=device)

    monkeypatch.setattr(fill, "read_nvidia", lambda: type("No", (), {"gpus": ()}))
    assert choose("auto").name == choose("pyav").name == "pyav"
    with pytest.raises(UsageError, match="--decode takes auto, pyav, dali, found 'nvdec'"):
        choose("nvdec")
    with pytest.raises(UsageError, match="--decode dali gives RGB only"):
        choose("dali", "i420")

    class Fake:
        name = "dali"

        def __init__(self, **_: object) -> None: ...

    class Unfit:
        def __init__(self, **_: object) -> None:
            raise EnvironmentUnfit("no NVDEC here")

    monkeypatch.setattr(fill, "read_nvidia", lambda: type("One", (), {"gpus": ("gpu",)}))
    monkeypatch.setattr(dali, "DaliSampler", Fake)
    assert choose("auto").name == choose("dali").name == "dali"
    assert choose("auto", "i420").name == choose("auto", device="cpu").name == "pyav"
    monkeypatch.setattr(dali, "DaliSampler", Unfit)
    assert choose("auto").name == "pyav"
    with pytest.raises(EnvironmentUnfit, match="no NVDEC here"):
        choose("dali")
