"""Filling a frame store against bare PyAV: processor time per stored frame, on one core.

    render ─► encode in three qualities ─► bare pass / `prepare`'s own path, turn by turn

The ceiling is what a single forward pass of PyAV costs that leaves out what nobody needs, with the
same conversion and nothing else: no hash, no check, no file. Processor time counts every process,
because a wall clock on a busy machine says nothing; it is linear in cores, as workers share
nothing. The start of a worker (a third of a second, once) is taken out by filling twice, a few
clips and many.
"""

from __future__ import annotations

import resource
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from numpy.typing import NDArray

from dfm_bench.measure import Row, Timing
from dfm_engine.clip import QUALITIES, Quality
from dfm_engine.errors import CheckFailed
from dfm_engine.interrupts import StopRequest
from dfm_engine.media.colour import FLAGS
from dfm_engine.media.encode import encode_clip, provenance_comment, rgb_to_i420
from dfm_engine.readers.files import sha256_file
from dfm_engine.recipe import Limits
from dfm_engine.store.fill import PrepareOptions, fill_store
from dfm_engine.store.frames import Store
from dfm_engine.store.listing import DataListing, ListedClip
from dfm_engine.store.meta import LAYOUTS, Layout
from dfm_engine.store.pyav import PyavSampler
from dfm_engine.store.sampler import evenly_spaced

__all__ = ["FillWorkload", "fill_rows", "make_clips"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FillWorkload:
    """What is stored.

    Attributes:
        people: clips, each in three qualities.
        clip_frames: length of a clip; the paper's have about 7 s at 25 frames/s.
        drawn_frames: of those, how many are rendered; the clip runs to and fro over them.
        frames: stored of each clip.
        size: side of the frames.
        passes: how often every file is read per fill that counts.
        repeats: fills that count.
    """

    people: int = 3
    clip_frames: int = 175
    drawn_frames: int = 24
    frames: int = 16
    size: int = 256
    passes: int = 6
    repeats: int = 5


def fill_rows(
    scratch: Path, *, workload: FillWorkload | None = None, command: str = ""
) -> tuple[Row, ...]:
    """Measure; one pair of rows per layout: bare, and the fill against it.

    Args:
        scratch: a folder; clips stay in it for the next time.
        workload: what is stored.
        command: makes the rows again.

    Raises:
        CheckFailed: the store does not hold what the bare pass read.
    """
    workload = workload or FillWorkload()
    clips = make_clips(scratch / f"fill-{workload.people}x{workload.clip_frames}", workload)
    rows: list[Row] = []
    for layout in LAYOUTS:
        rows += _rows_of(layout, clips, workload, scratch, command)
    return tuple(rows)


def make_clips(folder: Path, workload: FillWorkload) -> list[ListedClip]:
    """Clips of procedural people in three qualities, written where they are not there yet."""
    from dfm_engine.synthetic.identity import Identity
    from dfm_engine.synthetic.renderer import render
    from dfm_engine.synthetic.state import idle_states

    listed: list[ListedClip] = []
    for person in range(workload.people):
        paths = {quality: folder / f"{person}.{quality}.mp4" for quality in QUALITIES}
        if not all(path.is_file() for path in paths.values()):
            states = idle_states(workload.drawn_frames, seed=person)
            frames = render(Identity.draw(1000 + person), states, workload.size).frames.numpy()
            planes = rgb_to_i420(frames)[_to_and_fro(len(frames), workload.clip_frames)]
            for quality in QUALITIES:
                path = paths[quality]
                path.parent.mkdir(parents=True, exist_ok=True)
                comment = provenance_comment({"synthetic": True})
                encode_clip(planes, path, quality=quality, fps=25, comment=comment)
        listed += [_listed(paths[quality], quality, workload) for quality in QUALITIES]
    return listed


def _listed(path: Path, quality: Quality, workload: FillWorkload) -> ListedClip:
    return ListedClip(
        key=path.name,
        file=path,
        path=path.name,
        clip_id=path.name,
        quality=quality,
        identity=path.name.split(".")[0],
        sha256=sha256_file(path),
        clip_frames=workload.clip_frames,
    )


def _rows_of(
    layout: Layout,
    clips: Sequence[ListedClip],
    workload: FillWorkload,
    scratch: Path,
    command: str,
) -> list[Row]:
    bare: list[float] = []
    fill: list[float] = []
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        _check(layout, clips, workload, Path(folder) / "check")
        for turn in range(workload.repeats):
            bare.append(_seconds(lambda: _bare_pass(clips, workload, layout)))
            spent: list[float] = []
            for passes in (1, 1 + workload.passes):
                out = Path(folder) / f"{turn}-{passes}"
                spent.append(_seconds(lambda p=passes, o=out: _fill(clips, p, workload, layout, o)))
                shutil.rmtree(out)
            fill.append((spent[1] - spent[0]) / workload.passes)
    shape = (len(clips), workload.clip_frames, workload.size, workload.size, 3)
    amount = len(clips) * min(workload.frames, workload.clip_frames)
    ceiling = Row.of(
        "single pass, processor time",
        Timing(tuple(bare)),
        amount=amount,
        unit="frames/s",
        shape=shape,
        variant=f"bare PyAV, {layout}",
        command=command,
    )
    filled = Row.of(
        "store fill, processor time",
        Timing(tuple(fill)),
        amount=amount,
        unit="frames/s",
        shape=shape,
        variant=layout,
        ceiling=ceiling.rate,
        ceiling_of="bare PyAV single pass",
        command=command,
    )
    return [ceiling, filled]


def _fill(
    clips: Sequence[ListedClip], passes: int, workload: FillWorkload, layout: Layout, out: Path
) -> Store:
    """The path of `prepare` from a manifest's clips on, every clip `passes` times."""
    # Clips of their own: what is drawn once per store (the sheet) must not grow with the passes.
    many = tuple(
        replace(clip, key=f"{turn}/{clip.key}", clip_id=f"{turn}/{clip.clip_id}")
        for turn in range(passes)
        for clip in clips
    )
    options = PrepareOptions(
        data=clips[0].file.parent,
        out=out,
        frames=workload.frames,
        size_px=workload.size,
        layout=layout,
    )
    fill_store(
        options,
        DataListing(root=options.data, reader="built", clips=many),
        sampler=PyavSampler(size_px=workload.size, layout=layout, workers=1),
        workers=1,
        limits=Limits(),
        stop=StopRequest(),
        progress=False,
    )
    return Store.open(out)


def _bare_pass(
    clips: Sequence[ListedClip], workload: FillWorkload, layout: Layout
) -> list[NDArray[np.uint8]]:
    """The frames of the last clip; the others are dropped as they come."""
    reformatter = VideoReformatter()

    def to_rgb(frame: VideoFrame) -> NDArray[np.uint8]:
        rgb = reformatter.reformat(
            frame,
            format="rgb24",
            src_colorspace=Colorspace.ITU601,
            src_color_range=ColorRange.MPEG,
            dst_color_range=ColorRange.JPEG,
            interpolation=FLAGS,
            threads=1,
        )
        return rgb.to_ndarray()  # pyright: ignore[reportReturnType]

    def planes(frame: VideoFrame) -> NDArray[np.uint8]:
        return frame.to_ndarray()  # pyright: ignore[reportReturnType]

    frames: list[NDArray[np.uint8]] = []
    for clip in clips:
        frames = _bare(clip.file, workload.frames, to_rgb if layout == "rgb24" else planes)
    return frames


def _bare(
    path: Path, count: int, convert: Callable[[VideoFrame], NDArray[np.uint8]]
) -> list[NDArray[np.uint8]]:
    found: list[NDArray[np.uint8]] = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        packets = list(container.demux(stream))
        shown = sorted(packet.pts for packet in packets if packet.size and packet.pts is not None)
        wanted = {shown[number] for number in evenly_spaced(len(shown), count)}
        for packet in packets:
            is_needed = not packet.size or packet.pts in wanted
            stream.codec_context.skip_frame = "DEFAULT" if is_needed else "NONREF"
            found += [convert(frame) for frame in packet.decode() if frame.pts in wanted]
            if len(found) == len(wanted):
                break
    return found


def _check(layout: Layout, clips: Sequence[ListedClip], workload: FillWorkload, out: Path) -> None:
    """A number is only reported for a store that is right."""
    store = _fill(clips, 1, workload, layout, out)
    expected = np.stack(_bare_pass(clips[-1:], workload, layout)).astype(np.int16)
    found = store.read(store.index.of_clips([len(clips) - 1]))
    # The project sites chroma in the middle, the bare pass where H.264 implies: small differences.
    apart = float(np.abs(found - expected).mean()) if found.shape == expected.shape else np.inf
    if apart > (0 if layout == "i420" else 2):
        raise CheckFailed(
            f"no numbers: the {layout} store is {apart:.2f} levels from PyAV's frames"
        )


def _seconds(work: Callable[[], object]) -> float:
    """Processor time of this process and of those that it waited for."""
    before = _spent()
    work()
    return _spent() - before


def _spent() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def _to_and_fro(length: int, count: int) -> NDArray[np.int64]:
    """0 1 2 ... length-1 ... 1 0 1 ..."""
    place = np.arange(count) % (2 * length - 2)
    return np.minimum(place, 2 * length - 2 - place)
