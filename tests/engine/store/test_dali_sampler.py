"""`DaliSampler` and `DaliReader` give what PyAV gives, and lose nothing that PyAV keeps.

DALI's CPU decoder knows VP9 and stands in for NVDEC; H.264 kills it, as a bad clip would.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from dfmtest_dali import FRAMES, HEIGHT, SOFTWARE, WIDTH, software_router, to_sample, vp9
from dfmtest_drawn_clips import draw, encode

from dfm_engine.clip import Box
from dfm_engine.errors import MediaError
from dfm_engine.faces.pictures import ClipRange, PyavReader
from dfm_engine.media.outline import read_outline
from dfm_engine.readers.files import sha256_file
from dfm_engine.recipe import Clips, Limits
from dfm_engine.store import dali as dali_module
from dfm_engine.store import dali_reader
from dfm_engine.store.dali import DaliSampler
from dfm_engine.store.dali_graph import GraphSpec
from dfm_engine.store.dali_reader import DaliReader
from dfm_engine.store.dali_run import Part, Run
from dfm_engine.store.fill import PrepareOptions, run_prepare
from dfm_engine.store.frames import Store
from dfm_engine.store.nvdec import parts_of
from dfm_engine.store.pyav import PyavSampler
from dfm_engine.store.routing import Stream
from dfm_engine.store.sampler import ClipToSample, Refused, Sampled
from dfm_engine.store.sampling import sample_clip

pytest.importorskip("nvidia.dali", reason="DALI is not installed")

SIZE = 32
BOX = Box(10.5, -4.0, 70.25, 55.75)


class InProcess:
    """`PyavSampler` without its processes; notes what it was given."""

    name: Literal["pyav"] = "pyav"

    def __init__(self) -> None:
        self.given: list[str] = []

    def sample(self, clips: Iterable[ClipToSample]) -> Iterator[Sampled | Refused]:
        for clip in clips:
            self.given.append(clip.path.name)
            sample = sample_clip(
                clip.path,
                kind=clip.kind,
                clip_frames=clip.clip_frames,
                wanted=clip.wanted.tolist(),
                box=clip.box,
                sha256=clip.sha256,
                size_px=SIZE,
                layout="rgb24",
                limits=Limits(),
            )
            try:
                frames = list(sample.frames)
            except MediaError as error:
                yield Refused(clip=clip, error=error)
                continue
            middle = len(frames) // 2
            if middle:
                yield Sampled(clip=clip, frames=np.stack(frames[:middle]), is_last=False)
            yield Sampled(clip=clip, frames=np.stack(frames[middle:]), sha256=sample.sha256())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for k in range(3):
        vp9(folder / f"good{k}.webm", shift=7 * k)
    vp9(folder / "turned.mp4", quarters=1)
    vp9(folder / "other-size.webm", width=80, height=80)
    encode(folder / "kills.mp4", draw(FRAMES, WIDTH, HEIGHT))
    encode(folder / "lossless.mp4", draw(FRAMES, WIDTH, HEIGHT), options={"crf": "0"})
    whole = (folder / "good0.webm").read_bytes()
    (folder / "truncated.webm").write_bytes(whole[: len(whole) // 2])
    return folder


def sampler(fallback: InProcess) -> DaliSampler:
    return DaliSampler(size_px=SIZE, fallback=fallback, spec=SOFTWARE, router=software_router)


def near(got: np.ndarray, expected: np.ndarray) -> None:
    """Of one decoder and the other: mean below 0.5 levels, one in a hundred up to 3."""
    assert got.shape == expected.shape
    error = np.abs(got.astype(int) - expected)
    assert error.mean() < 0.5, error.mean()
    assert np.percentile(error, 99) < 3


def joined(items: Iterable[Sampled | Refused]) -> dict[int, np.ndarray | MediaError]:
    """Per place the frames, or the error; places must come in order, parts of one together."""
    found: dict[int, np.ndarray | MediaError] = {}
    pieces: list[np.ndarray] = []
    for item in items:
        if isinstance(item, Refused):
            found[item.clip.place] = item.error
            pieces = []
            continue
        pieces.append(item.frames.copy())
        if item.is_last:
            assert item.sha256 == sha256_file(item.clip.path)
            found[item.clip.place] = np.concatenate(pieces)
            pieces = []
    assert list(found) == sorted(found)
    return found


def order(folder: Path) -> list[ClipToSample]:
    names = [
        ("good0.webm", BOX),
        ("lossless.mp4", BOX),
        ("turned.mp4", BOX),
        ("kills.mp4", BOX),
        ("good1.webm", None),
        ("other-size.webm", BOX),
        ("truncated.webm", BOX),
        ("good2.webm", BOX),
    ]
    return [
        to_sample(folder / name, [1, 8, FRAMES - 1], place=place, box=box)
        for place, (name, box) in enumerate(names)
    ]


def test_every_clip_is_what_pyav_samples_in_order_and_none_is_lost(folder: Path) -> None:
    fallback = InProcess()
    ours = sampler(fallback)
    got = joined(ours.sample(iter(order(folder))))
    expected = joined(InProcess().sample(order(folder)))
    assert list(got) == list(expected) == list(range(8))
    assert fallback.given == ["lossless.mp4", "kills.mp4", "truncated.webm"]
    assert ours.routes == {"nvdec": 5, "codec": 1, "gave-up": 1, "truncated": 1}
    for place, frames in expected.items():
        if isinstance(frames, MediaError):
            refused = got[place]
            assert isinstance(refused, MediaError)
            assert (refused.kind, refused.reason) == (frames.kind, frames.reason)
        else:
            near(np.asarray(got[place]), frames)


def test_what_is_not_known_to_be_whole_never_meets_the_gpu(folder: Path) -> None:
    sound = to_sample(folder / "good0.webm", [0, 5], box=BOX)
    fallback = InProcess()
    ours = sampler(fallback)
    clips = [
        replace(sound, place=0, sha256=None),
        replace(sound, place=1, sha256="0" * 64),
        replace(sound, place=2, clip_frames=FRAMES + 1),
        replace(sound, place=3, path=folder / "absent.webm"),
    ]
    got = joined(ours.sample(clips[:3]))
    assert ours.routes == {"unknown-hash": 1, "changed": 1, "frame-count": 1}
    assert len(fallback.given) == 3
    assert isinstance(got[0], np.ndarray)
    assert "SHA-256" in str(got[1])
    assert ours._load(clips[3]).why_cpu == "not-found"


def test_a_first_picture_that_is_not_pyavs_sends_the_clip_to_pyav(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Size 80x80 asks for the check (see `software_router`); the decoder is made to be wrong."""
    clip = to_sample(folder / "other-size.webm", [2, 3], box=BOX)
    right = InProcess()
    expected = np.asarray(joined(InProcess().sample([clip]))[0])
    near(np.asarray(joined(sampler(right).sample([clip]))[0]), expected)
    assert right.given == []
    real = dali_module.DaliRunner.run

    def shifted(self, parts):
        return ((part, np.roll(frames, 5, axis=2)) for part, frames in real(self, parts))

    monkeypatch.setattr(dali_module.DaliRunner, "run", shifted)
    fallback = InProcess()
    ours = sampler(fallback)
    got = joined(ours.sample([clip]))[0]
    assert (fallback.given, ours.routes) == (["other-size.webm"], {"other-picture": 1})
    np.testing.assert_array_equal(got, expected)


def test_long_clips_are_decoded_in_parts_and_joined(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dfm_engine.store.routing.CHUNK_BYTES", WIDTH * HEIGHT * 3 * 5)
    path = folder / "good0.webm"
    clip = to_sample(path, list(range(0, FRAMES, 2)), box=BOX)
    outline = read_outline(path)
    stream = Stream.of_outline(outline)
    content = np.fromfile(path, np.uint8)
    parts = parts_of(outline, stream, content, clip.wanted, box=BOX, size=(SIZE, SIZE))
    assert [len(part.wanted) for part in parts] == [5, 5, 2]  # type: ignore[arg-type]
    got = joined(sampler(InProcess()).sample([clip]))[0]
    near(np.asarray(got), joined(InProcess().sample([clip]))[0])  # type: ignore[arg-type]


def test_windows_bound_what_is_held_and_load_one_ahead(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dali_module, "WINDOW_CLIPS", 2)
    drawn = 0

    def clips() -> Iterator[ClipToSample]:
        nonlocal drawn
        for place in range(9):
            drawn += 1
            yield to_sample(folder / "good0.webm", [place], place=place, box=BOX)

    running = sampler(InProcess()).sample(clips())
    first = next(running)
    assert isinstance(first, Sampled)
    assert drawn == 4
    rest = joined([first, *running])
    assert list(rest) == list(range(9))
    assert not np.array_equal(rest[0], rest[8])


def test_a_window_counts_the_files_that_it_holds(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = to_sample(folder / "good0.webm", [0], box=BOX)
    held = clip.path.stat().st_size + SIZE * SIZE * 3
    monkeypatch.setattr(dali_module, "WINDOW_BYTES", 2 * held)
    ours, source = sampler(InProcess()), iter([clip] * 9)
    assert len(ours._group(source)) == 2
    absent = replace(clip, path=folder / "absent.webm")
    assert len(ours._group(iter([absent, clip, clip, clip]))) == 3


def test_a_folder_prepared_through_dali_is_the_one_prepared_by_pyav(
    folder: Path, tmp_path: Path
) -> None:
    """Good, odd and broken files: the same rows, the same quarantine, pixels within a rounding."""
    data = tmp_path / "data"
    for label in ("real", "fake"):
        (data / label / label).mkdir(parents=True)
    for number, path in enumerate(sorted(folder.glob("*.*"))):
        label = ("real", "fake")[number % 2]
        (data / label / label / f"{number}{path.suffix}").write_bytes(path.read_bytes())
    pyav = PyavSampler(size_px=SIZE, layout="rgb24", workers=1)
    dali = DaliSampler(size_px=SIZE, fallback=pyav, spec=SOFTWARE, router=software_router)
    stores = []
    for sampler in (pyav, dali):
        out = tmp_path / sampler.name
        options = PrepareOptions(data=data, out=out, frames=4, size_px=SIZE, crop="whole")
        run_prepare(options, sampler=sampler, workers=1, progress=False)
        stores.append(Store.open(out))
    by_pyav, by_dali = stores
    assert dali.routes["nvdec"] >= 4
    assert dali.routes["gave-up"] == 1
    assert by_dali.index.clips == by_pyav.index.clips
    for name in ("index.parquet", "clips.parquet", "quarantine.parquet"):
        assert (tmp_path / "dali" / name).read_bytes() == (tmp_path / "pyav" / name).read_bytes()
    assert by_pyav.rows == by_dali.rows > 20
    rows = np.arange(by_dali.rows)
    near(by_dali.read(rows), by_pyav.read(rows))
    assert (by_pyav.meta.decode, by_dali.meta.decode) == ("pyav", "dali")
    (only,) = set(by_dali.meta.versions) - set(by_pyav.meta.versions)
    assert only.startswith("nvidia-dali")


# ---- the reader of build-dataset ----------------------------------------------------------------

CLIPS, LIMITS = Clips(fps=25, max_frames=40, min_frames=1), Limits()


def reader(fallback: PyavReader | None = None) -> DaliReader:
    return DaliReader(spec=SOFTWARE, router=software_router, fallback=fallback)


def ranged(path: Path, **how: object) -> ClipRange:
    return ClipRange(path=path, sha256=sha256_file(path), **how)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("good0.webm", {}),
        ("good1.webm", {"start_s": 0.2, "end_s": 0.7}),
        ("good0.webm", {"mirrored": True}),
        ("turned.mp4", {"mirrored": True}),
        ("other-size.webm", {"start_s": 0.2}),
        ("slow.webm", {}),
        ("fast.webm", {}),
        ("kills.mp4", {"mirrored": True}),
        ("lossless.mp4", {}),
    ],
)
def test_the_reader_shows_and_cuts_the_frames_that_pyav_does(
    folder: Path, name: str, how: dict
) -> None:
    if name in ("slow.webm", "fast.webm") and not (folder / name).exists():
        vp9(folder / name, rate=15 if name == "slow.webm" else 50)
    clip, ours = ranged(folder / name, **how), reader()
    expected = list(PyavReader().look(clip, every_n=5, limits=LIMITS, clips=CLIPS))
    shown = list(ours.look(clip, every_n=5, limits=LIMITS, clips=CLIPS))
    assert [index for index, _ in shown] == [index for index, _ in expected]
    near(np.stack([p for _, p in shown]), np.stack([p for _, p in expected]))
    settings = {"size": SIZE, "limits": LIMITS, "clips": CLIPS, "first_frame": 3}
    cut = ours.crop(clip, BOX, **settings)  # type: ignore[arg-type]
    near(cut, PyavReader().crop(clip, BOX, **settings))  # type: ignore[arg-type]
    is_ours = name not in ("kills.mp4", "lossless.mp4")
    assert (ours.routes["nvdec"] == 2) is is_ours
    if name == "kills.mp4":  # it is not tried a second time
        assert ours.routes == {"nvdec": 1, "gave-up": 1}


def test_the_reader_leaves_stills_and_unknown_files_to_pyav(folder: Path) -> None:
    ours = reader()
    unknown = ClipRange(path=folder / "good0.webm")
    settings = {"size": SIZE, "limits": LIMITS, "clips": CLIPS, "first_frame": 0}
    cut = ours.crop(unknown, BOX, **settings)  # type: ignore[arg-type]
    np.testing.assert_array_equal(cut, PyavReader().crop(unknown, BOX, **settings))  # type: ignore[arg-type]
    changed = replace(unknown, sha256="0" * 64)
    ours.crop(changed, BOX, **settings)  # type: ignore[arg-type]
    assert ours.routes == {"unknown-hash": 1, "changed": 1}
    broken = ranged(folder / "truncated.webm")
    with pytest.raises(MediaError, match="truncated"):
        list(ours.look(broken, every_n=5, limits=LIMITS, clips=CLIPS))


def test_looking_may_stop_half_way_and_the_next_clip_is_right(folder: Path) -> None:
    ours, clip = reader(), ranged(folder / "good0.webm")
    looking = ours.look(clip, every_n=1, limits=LIMITS, clips=CLIPS)
    next(looking)
    looking.close()  # pyright: ignore[reportAttributeAccessIssue]
    other = ranged(folder / "good2.webm")
    shown = [p for _, p in ours.look(other, every_n=8, limits=LIMITS, clips=CLIPS)]
    expected = [p for _, p in PyavReader().look(other, every_n=8, limits=LIMITS, clips=CLIPS)]
    near(np.stack(shown), np.stack(expected))


def test_threads_share_a_reader_and_get_what_one_alone_gets(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    at_work, most = 0, 0
    lock = threading.Lock()

    class Counted(dali_reader.DaliRunner):
        def __init__(self, spec: GraphSpec) -> None:
            made.append(self)
            super().__init__(spec)

        def run(self, parts: Iterable[Part]) -> Iterator[Run]:
            nonlocal at_work, most
            with lock:
                at_work += 1
                most = max(most, at_work)
            time.sleep(0.02)  # so that they meet
            yield from super().run(parts)
            with lock:
                at_work -= 1

    names = ["good0.webm", "good1.webm", "turned.mp4", "other-size.webm"] * 3
    clips = [ranged(folder / name) for name in names]
    settings = {"size": SIZE, "limits": LIMITS, "clips": CLIPS, "first_frame": 3}

    def read(ours: DaliReader, clip: ClipRange) -> tuple[list[int], list[bytes]]:
        shown = list(ours.look(clip, every_n=5, limits=LIMITS, clips=CLIPS))
        cut = ours.crop(clip, BOX, **settings)  # type: ignore[arg-type]
        return [i for i, _ in shown], [p.tobytes() for _, p in shown] + [cut.tobytes()]

    alone = reader()
    expected = [read(alone, clip) for clip in clips]
    monkeypatch.setattr(dali_reader, "DaliRunner", Counted)
    shared = DaliReader(spec=SOFTWARE, router=software_router, pipelines=2)
    assert len(made) == 1  # the second when the first is taken
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda clip: read(shared, clip), clips)) == expected
    assert len(made) == most == 2
    assert shared.routes == alone.routes
