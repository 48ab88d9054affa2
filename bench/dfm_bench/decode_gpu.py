"""What nobody knows before it has run on a GPU: NVDEC through the project's own DALI graph.

    1  how fast, over threads, batch, 16 frames or all, with and without the index; decoders busy
    2  what becomes of a lossless and of a 4:4:4 clip that goes there all the same
    3  how far its pixels are from PyAV's: BT.601, BT.709, full range
    6  what a picture size costs whose coded size is another (a decoder session per clip)

Rates are rows; what was seen of 2 and 3 is `Seen`. Pixels are compared first: a decoder that gives
other pictures than PyAV has no rate. Every part runs on a CPU, too, with DALI's VP9 decoder in the
place of NVDEC, which is how it is tested where there is no GPU.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

from dfm_bench.measure import Row, Timing
from dfm_bench.store_fill import FillWorkload, make_clips
from dfm_engine.clip import Box
from dfm_engine.errors import CheckFailed
from dfm_engine.media.decode import read_native_frames
from dfm_engine.media.outline import read_outline
from dfm_engine.store.dali_graph import GraphSpec
from dfm_engine.store.dali_run import DaliRunner, Failed, Part
from dfm_engine.store.nvdec import gpu_spec, parts_of
from dfm_engine.store.routing import ALIGNMENT_PX, Stream
from dfm_engine.store.sampler import evenly_spaced

__all__ = [
    "DecodeFindings",
    "DecodeWorkload",
    "Seen",
    "compare_with_pyav",
    "measure_decode",
    "session_rows",
    "sweep_rows",
]

LARGEST_MEAN, LARGEST_P99 = 0.5, 3.0  # levels between two right decoders


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeWorkload:
    """What is decoded.

    Attributes:
        clips: decoded in one timed pass; few files, each many times.
        frames: taken of each clip, and all of them in another pass.
        size: side of the frames that come out, pixels.
        threads, batches: swept over.
        session_clips: clips of each size in the comparison of sizes.
        large: width and height of which one is no multiple of 16.
        mixed: sizes that are multiples of 16.
        repeats: passes that count.
        material: the clips.
    """

    clips: int = 2000
    frames: int = 16
    size: int = 256
    threads: tuple[int, ...] = (4, 8, 16, 32)
    batches: tuple[int, ...] = (16, 64)
    session_clips: int = 32
    large: tuple[int, int] = (1920, 1080)
    mixed: tuple[tuple[int, int], ...] = ((256, 256), (320, 320), (480, 480), (640, 368))
    repeats: int = 3
    material: FillWorkload = field(default_factory=lambda: FillWorkload(people=8))


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What became of a clip that the graph was given.

    Attributes:
        what: of which kind the clip is.
        refused: DALI's reason, or "" if pictures came.
        mean, p99, largest: levels from PyAV's pictures, all frames; None where none came.
        is_right: within the tolerance of two decoders.
    """

    what: str
    refused: str = ""
    mean: float | None = None
    p99: float | None = None
    largest: float | None = None
    is_right: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeFindings:
    """Rates and sights."""

    rows: tuple[Row, ...]
    seen: tuple[Seen, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        return {
            "rows": [row.to_json() for row in self.rows],
            "seen": [asdict(seen) for seen in self.seen],
        }


def measure_decode(
    scratch: Path, *, workload: DecodeWorkload | None = None, command: str = ""
) -> DecodeFindings:
    """Run the list on this machine's GPU.

    Args:
        scratch: a folder; clips stay in it for the next time.
        workload: what is decoded.
        command: makes the rows again.

    Raises:
        EnvironmentUnfit: there is no GPU that DALI decodes on.
        CheckFailed: canonical clips are not what PyAV makes of them.
    """
    workload = workload or DecodeWorkload()
    spec = gpu_spec()
    listed = make_clips(scratch / f"fill-{workload.material.people}", workload.material)
    paths = [clip.file for clip in listed if clip.quality == "c23"]
    odd = write_odd_clips(scratch / "odd", paths[0])
    seen = tuple(compare_with_pyav(path, spec, what=what) for what, path in odd.items())
    wrong = [one for one in seen if one.what.startswith("canonical") and not one.is_right]
    if wrong:
        raise CheckFailed(f"no rates: the GPU's pictures are not PyAV's: {wrong[0]}")
    rows = (
        *sweep_rows(paths, spec, workload, command=command),
        *session_rows(scratch / "sizes", spec, workload, command=command),
    )
    return DecodeFindings(rows=rows, seen=seen)


def sweep_rows(
    paths: Sequence[Path], spec: GraphSpec, workload: DecodeWorkload, *, command: str = ""
) -> list[Row]:
    """Rates over threads and batch; for the best of them all frames, and without the index.

    Args:
        paths: clips of one size.
        spec: the graph; its threads, batch and index are varied.
        workload: what is decoded.
        command: makes the rows again.
    """

    def row(spec: GraphSpec, frames: int) -> Row:
        chosen = [_part(path, frames, size=workload.size) for path in paths]
        parts = _repeat(chosen, workload.clips)
        wanted = sum(len(cast("NDArray[np.int32]", part.wanted)) for part in parts)
        timing, busy = _timed(spec, parts, workload.repeats)
        return Row.of(
            "decode",
            timing,
            variant=_variant(spec, frames),
            amount=wanted,
            unit="frames/s",
            shape=(len(parts), wanted // len(parts), *parts[0].size, 3),
            device="cuda" if spec.device_id is not None else "cpu",
            command=command,
            note=_use(busy),
        )

    swept = {
        (threads, batch): row(replace(spec, threads=threads, batch_size=batch), workload.frames)
        for threads, batch in itertools.product(workload.threads, workload.batches)
    }
    threads, batch = max(swept, key=lambda key: swept[key].rate)
    best = replace(spec, threads=threads, batch_size=batch)
    return [*swept.values(), row(best, 0), row(replace(best, has_index=False), workload.frames)]


def session_rows(
    folder: Path,
    spec: GraphSpec,
    workload: DecodeWorkload,
    *,
    write: Callable[[Path, int, int], None] | None = None,
    command: str = "",
) -> list[Row]:
    """Clips a second where the coded size is the shown one, where it is not, and of mixed sizes.

    Args:
        folder: for the clips; kept.
        spec: the graph.
        workload: how many clips.
        write: makes a clip (path, width, height); H.264 where left out.
        command: makes the rows again.
    """
    write = write or _write_size
    aligned = tuple(-(-side // ALIGNMENT_PX) * ALIGNMENT_PX for side in workload.large)
    sizes = {
        "coded as shown": [aligned],
        "coded larger than shown": [workload.large],
        "sorted by size": workload.mixed,
        "sizes in turn": workload.mixed,
    }
    rows: list[Row] = []
    for name, shapes in sizes.items():
        parts: list[Part] = []
        for width, height in shapes:
            path = folder / f"{width}x{height}"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                write(path, width, height)
            parts.append(_part(path, 1, size=workload.size))
        parts = _repeat(parts, workload.session_clips)
        if name.startswith("sorted"):
            parts.sort(key=lambda part: part.decoded_bytes)
        timing, _ = _timed(spec, parts, workload.repeats)
        rows.append(
            Row.of(
                "decoder sessions",
                timing,
                variant=name,
                amount=len(parts),
                unit="clips/s",
                shape=(len(parts), *shapes[0][::-1], 3),
                device="cuda" if spec.device_id is not None else "cpu",
                command=command,
            )
        )
    return rows


def compare_with_pyav(path: Path, spec: GraphSpec, *, what: str) -> Seen:
    """Decode a whole clip by the graph, whatever routing says, and hold it against PyAV."""
    part = _part(path, 0, size=None)
    with DaliRunner(replace(spec, batch_size=1)) as runner:
        ((_, result),) = runner.run([part])
    if isinstance(result, Failed):
        return Seen(what=what, refused=result.reason)
    expected = np.stack([native.rgb for native in read_native_frames(path)])
    error = np.abs(result.astype(np.int16) - expected)
    mean, p99 = float(error.mean()), float(np.percentile(error, 99))
    return Seen(
        what=what,
        mean=mean,
        p99=p99,
        largest=float(error.max()),
        is_right=mean < LARGEST_MEAN and p99 < LARGEST_P99,
    )


def write_odd_clips(folder: Path, canonical: Path) -> dict[str, Path]:
    """Clips of one picture content in all the ways that NVDEC may stumble over."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = [native.rgb for native in itertools.islice(read_native_frames(canonical), 25)]
    ways: dict[str, dict[str, Any]] = {
        "canonical again, untagged": {},
        "BT.709": {"matrix": 1},
        "full range": {"pix_fmt": "yuvj420p", "matrix": 5},
        "lossless 4:2:0 (crf 0)": {"crf": "0"},
        "4:4:4": {"pix_fmt": "yuv444p"},
        "4:2:2": {"pix_fmt": "yuv422p"},
        "10-bit": {"pix_fmt": "yuv420p10le"},
    }
    written = {"canonical": canonical}
    for number, (what, how) in enumerate(ways.items()):
        path = folder / f"{number}.mp4"
        if not path.exists():
            _encode(path, pictures, **how)
        written[what] = path
    return written


def _variant(spec: GraphSpec, frames: int) -> str:
    parts = [f"{spec.threads} threads, batch {spec.batch_size}", f"{frames or 'all'} frames"]
    parts += [] if spec.has_index else ["no index"]
    return ", ".join(parts)


def _use(busy: float | None) -> str:
    return "" if busy is None else f"NVDEC {busy:.0f} % busy"


def _part(path: Path, frames: int, *, size: int | None) -> Part:
    """A clip for the graph: so many evenly spaced frames (0: all), in a size or as they are."""
    outline = read_outline(path)
    stream = Stream.of_outline(outline)
    height, width = outline.upright_size
    (part,) = parts_of(
        outline,
        stream,
        np.fromfile(path, np.uint8),
        evenly_spaced(len(outline.times_s), frames),
        box=Box(0.0, 0.0, float(width), float(height)),
        size=(outline.height, outline.width) if size is None else (size, size),
    )
    return part


def _repeat(parts: Sequence[Part], count: int) -> list[Part]:
    return list(itertools.islice(itertools.cycle(parts), count))


def _timed(spec: GraphSpec, parts: Sequence[Part], repeats: int) -> tuple[Timing, float | None]:
    """Time whole passes, after one that does not count; share of the time that NVDEC was busy."""
    samples: list[float] = []
    with DaliRunner(spec) as runner:
        _pass(runner, parts[: 2 * spec.batch_size])
        with _decoder_use() as use:
            for _ in range(repeats):
                started = time.perf_counter()
                _pass(runner, parts)
                samples.append(time.perf_counter() - started)
    return Timing(tuple(samples)), float(np.mean(use)) if use else None


def _pass(runner: DaliRunner, parts: Sequence[Part]) -> None:
    for part, result in runner.run(parts):
        if isinstance(result, Failed):
            raise CheckFailed(f"no rates: the graph does not take {part.name}: {result.reason}")


@contextmanager
def _decoder_use():
    """A list that fills with NVDEC's use in percent, every 0.2 s, once the block has ended."""
    found: list[float] = []
    tool = shutil.which("nvidia-smi")
    if tool is None:
        yield found
        return
    query = ["--query-gpu=utilization.decoder", "--format=csv,noheader,nounits", "-i", "0"]
    process = subprocess.Popen(
        [tool, *query, "-lms", "200"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        yield found
    finally:
        process.terminate()
        told, _ = process.communicate()
        found += [float(line) for line in told.splitlines() if line.strip().isdigit()]


def _write_size(path: Path, width: int, height: int) -> None:
    y, x = np.mgrid[0:height, 0:width]
    ramp = np.stack([x % 256, y % 256, (x + y) % 256], -1).astype(np.uint8)
    _encode(path, [np.roll(ramp, 3 * k, axis=1) for k in range(4)])


def _encode(
    path: Path,
    pictures: Sequence[NDArray[np.uint8]],
    *,
    pix_fmt: str = "yuv420p",
    crf: str = "18",
    matrix: int = 2,
) -> None:
    """Write an mp4, tagged with a matrix of ISO/IEC 23091-2 (2: not) and converted by it."""
    with av.open(str(path), "w", format="mp4") as out:
        options = {"crf": crf, "preset": "veryfast"}
        stream = cast("VideoStream", out.add_stream("libx264", rate=25, options=options))
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pix_fmt
        context = stream.codec_context
        context.thread_count = 1
        context.colorspace = matrix
        is_full = pix_fmt.startswith("yuvj")
        context.color_range = 2 if is_full else 1
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(
                format=pix_fmt,
                dst_colorspace=1 if matrix == 1 else 5,
                src_color_range=2,
                dst_color_range=2 if is_full else 1,
                interpolation="BILINEAR",
                threads=1,
            )
            frame.pts, frame.time_base = index, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
