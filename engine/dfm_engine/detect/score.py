"""Score videos: `run_score` is what `dfm-engine score` runs.

In: files and folders. Out: one line per video as soon as it is known, and a `ScoreReport`. While
the net looks at one video the next is read, so memory holds the frames of two, however many there
are. A video's probability is the mean over its frames, as in an evaluation; a file that cannot be
used is a line with its reason. Files are opened by a process of their own: one that takes FFmpeg
down is such a line too.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from av.error import FFmpegError
from numpy.typing import NDArray

from dfm_engine.columns import text_of_path
from dfm_engine.detect.cam_sheet import write_cam_sheet
from dfm_engine.detect.runner import DetectorOutput
from dfm_engine.detect.video_frames import CROPS, Crop, VideoFrames, read_video, shown_name
from dfm_engine.errors import MediaError, UsageError, WorkerDied
from dfm_engine.faces.framing import Detector
from dfm_engine.media.containers import MEDIA_SUFFIXES
from dfm_engine.media.decoding_process import Decoding, DecodingProcess
from dfm_engine.media.probe_command import list_files
from dfm_engine.media.probe_workers import crash
from dfm_engine.media.reading_process import CRASH_ATTEMPTS
from dfm_engine.overlap import Ahead
from dfm_engine.recipe import Limits

if TYPE_CHECKING:
    from dfm_engine.detect.runner import DetectorRunner

__all__ = ["ScoreReport", "ScoredVideo", "run_score"]

FRAMES = 32
SIZE_PX = 256
"""Side of canonical frames, and of a store's; a net with a larger input gets larger ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredVideo:
    """One line.

    Attributes:
        path: as given, or found in a folder.
        p_fake: mean fake probability of the frames; None where the file could not be used.
        frames: how many were looked at.
        missed: frames left out since no face was seen near them.
        lowest, highest: of the frames' probabilities.
        crop: `face` or `whole`.
        sha256: of the file.
        cam: the sheet that was written.
        error, reason: why it could not be used.
    """

    path: Path
    p_fake: float | None = None
    frames: int = 0
    missed: int = 0
    lowest: float | None = None
    highest: float | None = None
    crop: str | None = None
    sha256: str | None = None
    cam: Path | None = None
    error: str | None = None
    reason: str = ""

    @property
    def verdict(self) -> Literal["fake", "real"] | None:
        """Fake above 0.5."""
        return None if self.p_fake is None else "fake" if self.p_fake > 0.5 else "real"

    def line(self) -> str:
        """For a person."""
        name = shown_name(self.path)
        if self.p_fake is None:
            return f"  -    unusable {name}  [{self.error}] {self.reason}"
        text = f"{self.p_fake:.4f} {self.verdict}     {name}  {self.frames} frames"
        text += f", {self.missed} without a face" if self.missed else ""
        text += f", {self.lowest:.3f} to {self.highest:.3f}, {self.crop}"
        return text + (f"  -> {self.cam.name}" if self.cam else "")

    def to_json(self) -> dict[str, Any]:
        """Plain values; a path that is no UTF-8 keeps its bytes as escapes."""
        values = {name: getattr(self, name) for name in self.__slots__}
        values["path"] = text_of_path(self.path)
        values["cam"] = None if self.cam is None else text_of_path(self.cam)
        return values | {"verdict": self.verdict}


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreReport:
    """All videos of one call, in order.

    Attributes:
        model: name, weights, runner.
        videos: one entry per file.
    """

    model: dict[str, str]
    videos: tuple[ScoredVideo, ...]

    @property
    def exit_code(self) -> int:
        """0 if every file has a score, else 3; 3 also where there was no file at all."""
        usable = [video.p_fake is not None for video in self.videos]
        return 0 if usable and all(usable) else 3

    def summary(self) -> str:
        """The counts in a line."""
        counts = [
            f"{sum(video.verdict == word for video in self.videos)} {text}"
            for word, text in (("fake", "fake"), ("real", "real"), (None, "unusable"))
        ]
        if not self.videos:
            return (
                "0 files: no video or picture there, by the endings of names; name files or folders"
            )
        return f"{len(self.videos)} files: {', '.join(counts)}"

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "model": self.model,
            "videos": [video.to_json() for video in self.videos],
            "scored": sum(video.p_fake is not None for video in self.videos),
            "exit_code": self.exit_code,
        }


def run_score(
    paths: Sequence[str | os.PathLike[str]],
    *,
    runner: DetectorRunner,
    faces: Callable[[], Detector],
    frames: int = FRAMES,
    crop: Crop = "auto",
    cam: Path | None = None,
    limits: Limits | None = None,
    say: Callable[[str], None] = lambda line: None,
    decoding: Decoding | None = None,
) -> ScoreReport:
    """Score videos.

    Args:
        paths: files, and folders to search for media files; a named file is always tried.
        runner: the detector.
        faces: loads the face detector; called when the first video needs it.
        frames: of each video, evenly spaced, at most; 0 is every frame.
        crop: how frames are cut out, see `video_frames`.
        cam: folder for a sheet of class activation maps per video.
        limits: what a file may ask for.
        say: told every line as soon as it is known.
        decoding: opens the files; a process of this call where left out.

    Raises:
        UsageError: no path, or a word that does not exist.
        EnvironmentUnfit: a sheet cannot be written, or the process does not start.
    """
    if not paths:
        raise UsageError("nothing to score: name video files or folders of them")
    if crop not in CROPS:
        raise UsageError(f"--crop takes {', '.join(CROPS)}, found {crop!r}")
    if cam is not None and cam.exists() and not cam.is_dir():
        raise UsageError(f"--cam {os.fspath(cam)!r} is a file; name a folder")
    files = [file for path in paths for file in _files(Path(os.fsdecode(path)))]
    size_px = max(SIZE_PX, round(runner.spec.input_px / runner.spec.crop))
    lazy = _LazyDetector(faces)

    def read(path: Path, decoding: Decoding) -> VideoFrames | MediaError:
        for _ in range(CRASH_ATTEMPTS):
            try:
                return read_video(
                    path,
                    frames=frames,
                    size_px=size_px,
                    detector=lazy,
                    crop=crop,
                    limits=limits,
                    decoding=decoding,
                )
            except WorkerDied:
                continue
            except MediaError as error:
                return error
            except (OSError, MemoryError, FFmpegError) as error:
                return MediaError(path, "unreadable", f"reading it failed: {error!r}")
        return crash(path)

    def videos() -> Iterator[tuple[Path, VideoFrames | MediaError]]:
        with DecodingProcess() as own:
            for path in files:
                yield path, read(path, decoding or own)

    scored: list[ScoredVideo] = []
    with Ahead(videos(), depth=1, name="read") as ahead:  # while the last one is looked at
        for path, video in ahead:
            one = _score(path, video, runner, cam)
            scored.append(one)
            counter = f"[{len(scored)}/{len(files)}] " if len(files) > 1 else ""
            say(counter + one.line())
            del video  # before the next one is made
    return ScoreReport(
        model={
            "name": runner.spec.name,
            "weights_sha256": runner.weights_sha256,
            "runner": runner.name,
        },
        videos=tuple(scored),
    )


def _files(path: Path) -> Iterator[Path]:
    for file in list_files(path):
        if file == path or file.suffix.lower() in MEDIA_SUFFIXES:
            yield file


def _score(
    path: Path, video: VideoFrames | MediaError, runner: DetectorRunner, cam: Path | None
) -> ScoredVideo:
    if isinstance(video, MediaError):
        return ScoredVideo(path=path, error=video.kind, reason=video.reason)
    logits, maps = _look(video, runner, with_maps=cam is not None)
    p = DetectorOutput(logits, maps).fake.double().numpy()
    if not np.isfinite(p).all():
        return ScoredVideo(
            path=path,
            error="no-score",
            reason=f"{runner.name} gave {p[~np.isfinite(p)][0]}; the weights are damaged or do not "
            "bear this precision",
        )
    mean = float(np.clip(p.mean(), 0, 1))
    sheet = None
    if cam is not None:
        sheet = cam / _sheet_name(path)
        write_cam_sheet(
            sheet, video, maps.numpy(), p, p_fake=mean, spec=runner.spec, runner=runner.name
        )
    return ScoredVideo(
        path=path,
        p_fake=mean,
        frames=len(p),
        missed=video.missed,
        lowest=float(p.min()),
        highest=float(p.max()),
        crop=video.crop,
        sha256=video.sha256,
        cam=sheet,
    )


def _look(
    video: VideoFrames, runner: DetectorRunner, *, with_maps: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (T, C), and maps (T, C, h, w) or none of them, on the CPU."""
    logits: list[torch.Tensor] = []
    maps: list[torch.Tensor] = []
    for start in range(0, len(video.frames), runner.max_batch):
        part: NDArray[np.uint8] = video.frames[start : start + runner.max_batch]
        out = runner.run(torch.from_numpy(part).to(runner.device))
        logits.append(out.logits.float().cpu())
        maps.append(out.cam.float().cpu() if with_maps else torch.empty(0))
    return torch.cat(logits), torch.cat(maps)


def _sheet_name(path: Path) -> str:
    """Tells the videos of two folders apart, and is a name on any file system."""
    stem = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in path.stem)
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
    return f"{stem[:80]}-{digest}.png"


class _LazyDetector:
    """A face detector that is loaded when it is first asked: canonical clips need none."""

    def __init__(self, load: Callable[[], Detector]) -> None:
        self._load = load
        self._loaded: Detector | None = None

    def detect(self, frames: Any, *, min_face_px: float = 20.0) -> Any:
        """See `faces.framing.Detector`."""
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded.detect(frames, min_face_px=min_face_px)
