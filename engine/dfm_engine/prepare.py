"""Every input looked at once: is the file whole, is there a usable face, how long is it?

Each file is first decoded in full by a worker process (`media.probe_workers`): a file that takes
FFmpeg down takes that worker, not the run. What survives is framed (`faces.framing`), several clips
at once: by threads, or beside a GPU by the same worker (`framing_workers`). The outcome, a small
JSON file in `<out>/prepared/`, is all that planning needs, so a resumed run plans without decoding
anything again. Pixels are not kept: a job decodes its clips when its turn comes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from dfm_engine.clip import Box, DrivingClip, FramedClip, SourceClip
from dfm_engine.durable import write_durably
from dfm_engine.errors import FaceError, MediaError
from dfm_engine.media.probe import Probe
from dfm_engine.media.probe_workers import probe_all
from dfm_engine.overlap import MapAhead
from dfm_engine.progress import Meters
from dfm_engine.recipe import BuildRecipe, Limits

if TYPE_CHECKING:
    from dfm_engine.framing_workers import FramingWorkers

Given = tuple[SourceClip | DrivingClip, Probe | MediaError, int]
"""A clip, what its probe says, and the workers that died on it."""

LOOK_AHEAD = 4
"""Clips per framer that are probed, or framed and wait for one before them."""

CONTRACT = 1
"""Raise when framing changes: it makes every earlier preparation stale."""

PASSING_KINDS = frozenset(
    {"not-found", "not-a-regular-file", "permission", "unreadable", "io-error"}
)
"""Failures that tell of the moment and not of the file's content: the next run tries again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What planning knows of an input: usable with its measurements, or refused with the reason.

    Attributes:
        sha256: content hash of the file.
        role: `source` or `driving`.
        frames: canonical frames it gives; 0 if refused.
        box: the square face box in pixels of the upright picture.
        first_frame: the first canonical frame of the file that shows the face.
        source_index, source_scores: the frame chosen as source image (sources only).
        stage, kind, reason: where and why it was refused (`docs/inputs.md`), None for a usable
            one.
        attempts: workers that died on it.
    """

    sha256: str
    role: Literal["source", "driving"]
    frames: int = 0
    box: Box | None = None
    first_frame: int = 0
    source_index: int = 0
    source_scores: dict[str, float] = dataclasses.field(default_factory=dict)
    stage: str | None = None
    kind: str | None = None
    reason: str | None = None
    attempts: int = 0

    @property
    def is_usable(self) -> bool:
        """Whether a job may build on it."""
        return self.kind is None

    @classmethod
    def of(cls, clip: SourceClip | DrivingClip, framed: FramedClip) -> Prepared:
        """The outcome of a clip that framed well."""
        return cls(
            sha256=clip.sha256,
            role=_role(clip),
            frames=len(framed.frames),
            box=framed.box,
            first_frame=framed.first_frame,
            source_index=framed.source_index,
            source_scores=dict(framed.source_scores),
        )

    @classmethod
    def refused(
        cls, clip: SourceClip | DrivingClip, error: MediaError, *, attempts: int = 0
    ) -> Prepared:
        """The outcome of a clip that cannot be used."""
        return cls(
            sha256=clip.sha256,
            role=_role(clip),
            stage="face" if isinstance(error, FaceError) else "probe",
            kind=error.kind,
            reason=error.reason,
            attempts=attempts,
        )


class PreparedStore:
    """The outcomes on disk, one file per input and settings; whole or absent.

    Args:
        folder: `<out>/prepared`.
        recipe: the parts that decide an outcome (limits, faces, clips, sources) are in the key.
        frame_size: side of the canonical frame.
        framed_by: what looks for the face, where it is not what the networks of the run would be:
            another may see a box elsewhere by a rounding.
    """

    def __init__(
        self, folder: Path, recipe: BuildRecipe, *, frame_size: int, framed_by: str | None = None
    ) -> None:
        self._folder = folder
        parts = [
            CONTRACT,
            frame_size,
            *(dataclasses.asdict(part) for part in (recipe.limits, recipe.faces, recipe.clips)),
            dataclasses.asdict(recipe.sources),
            *([framed_by] if framed_by else []),
        ]
        self._settings = json.dumps(parts, sort_keys=True)

    def read(self, clip: SourceClip | DrivingClip) -> Prepared | None:
        """The outcome of an earlier look, or None."""
        try:
            facts = json.loads(self._path(clip).read_bytes())
            box = facts.pop("box")
            return Prepared(**facts, box=Box(*box) if box else None)
        except (OSError, ValueError, TypeError):
            return None  # absent, or not written by this version: look again

    def write(self, clip: SourceClip | DrivingClip, outcome: Prepared) -> None:
        """Keep an outcome."""
        text = json.dumps(dataclasses.asdict(outcome), sort_keys=True, indent=1)
        write_durably(self._path(clip), text.encode())

    def _path(self, clip: SourceClip | DrivingClip) -> Path:
        facts: list[Any] = [clip.sha256, _role(clip), self._settings]
        if isinstance(clip, DrivingClip):
            facts += [clip.start_s, clip.end_s, clip.mirrored]
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
        return self._folder / f"{_role(clip)}-{key}.json"


class Framer(Protocol):
    """Frames a clip by its face; `faces.framing.frame_clip` with its settings bound is one."""

    def __call__(self, clip: SourceClip | DrivingClip) -> FramedClip:
        """The framed clip, or a `MediaError`."""
        ...


Looked = tuple[SourceClip | DrivingClip, Prepared]
"""A clip, and its outcome."""


def prepare_clips(
    clips: Sequence[SourceClip | DrivingClip],
    store: PreparedStore,
    framer: Framer,
    *,
    limits: Limits,
    workers: int,
    meters: Meters,
    framers: int = 1,
    within: Callable[[], AbstractContextManager[Any]] = nullcontext,
    framing: FramingWorkers | None = None,
) -> Generator[Looked, None, None]:
    """Look at every clip that `store` does not know yet.

    Args:
        clips: what to look at.
        store: the outcomes of earlier looks.
        framer: called from several threads where there are several framers.
        limits: what a file may ask for.
        workers: processes that probe.
        meters: where the time goes.
        framers: clips framed at once, each on one core.
        within: entered by each thread that frames.
        framing: processes that probe and frame in place of both, where there are enough files for
            them; `framer` then is theirs.

    Yields:
        Each clip with its outcome: first the known ones, then the others in order. Close it where
        it is not drawn to its end.
    """
    unknown: list[SourceClip | DrivingClip] = []
    for clip in clips:
        outcome = store.read(clip)
        if outcome is None:
            unknown.append(clip)
        else:
            yield clip, outcome
    if not unknown:
        return
    paths = list(dict.fromkeys(clip.path for clip in unknown))
    by_path: dict[Path, list[SourceClip | DrivingClip]] = {path: [] for path in paths}
    for clip in unknown:
        by_path[clip.path].append(clip)

    def keep(given: Looked) -> Looked:
        clip, outcome = given
        if outcome.kind not in PASSING_KINDS:
            store.write(clip, outcome)
        return given

    # Outcomes are small: a clip that takes long does not make the others wait.
    ahead = partial(
        MapAhead[Any, Looked], workers=framers, depth=LOOK_AHEAD * framers, name="frame"
    )
    if framing is not None and framing.is_worth(len(paths)):
        found = framing.outcomes(list(by_path.values()), meters=meters)
        with ahead(keep, found) as outcomes:
            yield from outcomes
        return
    probing = meters.stage("probe", workers=min(max(1, workers), len(paths)))
    meters.stage("frame", workers=framers)

    def count_probe(busy_s: float) -> None:
        probing.busy_s += busy_s

    def looks() -> Iterator[Given]:
        found = probe_all(paths, limits=limits, workers=workers, on_busy=count_probe)
        with closing(found):
            for index, probed, attempts in found:
                if isinstance(probed, Probe):
                    meters.count("probe", clips=1, frames=probed.frames or 0)
                for clip in by_path[paths[index]]:
                    yield clip, probed, attempts

    def look(given: Given) -> Looked:
        return keep((given[0], look_at(*given, framer, meters)))

    with ahead(look, looks(), within=within) as outcomes:
        yield from outcomes


def look_at(
    clip: SourceClip | DrivingClip,
    probed: Probe | MediaError,
    attempts: int,
    framer: Framer,
    meters: Meters,
) -> Prepared:
    """The outcome of a clip: what its probe says, or its framing."""
    try:
        if isinstance(probed, MediaError):
            raise probed
        if probed.verdict != "accept":  # a damaged clip is not a source of anything
            raise MediaError(clip.path, probed.error or "corrupt", probed.reason)
        with meters.busy("frame", clips=1):
            framed = framer(clip)
        meters.count("frame", frames=len(framed.frames))
        return Prepared.of(clip, framed)
    except MediaError as error:
        return Prepared.refused(clip, error, attempts=attempts)


def _role(clip: SourceClip | DrivingClip) -> Literal["source", "driving"]:
    return "source" if isinstance(clip, SourceClip) else "driving"
