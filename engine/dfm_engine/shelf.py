"""The clips of a run, opened when a job needs them and no sooner.

A source is opened once for all its jobs in a row: its frames, and what the generator needs of its
source image. It is held by those jobs and by nothing else. Of a driving clip the keypoints and the
motion signals of every frame are kept for the whole run; they are small.

Any number of lanes (`lanes`) open clips at once: each decodes, crops and looks for itself, while
the model is called by one thread for all of them, clip after clip.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from dfm_engine.actions import Action
from dfm_engine.animate import prepare_driving, prepare_source
from dfm_engine.backends import Runner
from dfm_engine.clip import DrivingClip, FaceTrack, Pixels, SourceClip
from dfm_engine.driving_store import DrivingMotion, DrivingStore
from dfm_engine.errors import DfmError, FaceError, MediaError, ShapeError, UsageError
from dfm_engine.faces.framing import crop_clip
from dfm_engine.faces.pictures import FrameReader
from dfm_engine.fomm.best_frame import find_best_frame
from dfm_engine.fomm.transfer import transfer
from dfm_engine.fomm.values import Keypoints, SourceFeatures
from dfm_engine.lanes import SharedLane, settle
from dfm_engine.prepare import Prepared
from dfm_engine.progress import Meters
from dfm_engine.recipe import BuildRecipe
from dfm_engine.screen import Detector, Signals, extract_signals, look, measure


@dataclass(frozen=True, slots=True)
class OpenSource:
    """A source clip with its pixels.

    Attributes:
        clip, prepared: what it is and what was measured of it.
        frames: uint8 (T, S, S, 3), the canonical frames; one frame for a still.
        features, keypoints: one row each, of the source image.
        look: what the screen measures of the source image; None where it finds no face.
    """

    clip: SourceClip
    prepared: Prepared
    frames: Pixels
    features: SourceFeatures
    keypoints: Keypoints
    look: Signals | None


@dataclass(frozen=True, slots=True)
class OpenDriving:
    """A driving clip, every frame reduced to what animation and screen need.

    Attributes:
        clip, prepared: what it is and what was measured of it.
        keypoints: T rows.
        signals: its motion.
        track: the face in pixels of the canonical frames.
    """

    clip: DrivingClip
    prepared: Prepared
    keypoints: Keypoints
    signals: Signals
    track: FaceTrack


def driving_key(clip: DrivingClip) -> str:
    """16 hex digits for the content and the part of it that is used."""
    facts = [clip.sha256, clip.start_s, clip.end_s, clip.mirrored, clip.action]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


class SharedSource:
    """A source for several jobs: opened by the first that asks, given to all, held while they are.

    Args:
        shelf: opens it.
        sha256: of the clip.
    """

    def __init__(self, shelf: Shelf, sha256: str) -> None:
        self.sha256 = sha256
        self._shelf = shelf
        self._opened: OpenSource | None = None
        self._lock = threading.Lock()

    def open(self) -> OpenSource:
        """See `Shelf.open_source`; whoever asks meanwhile waits for it."""
        with self._lock:
            if self._opened is None:
                self._opened = self._shelf.open_source(self.sha256)
            return self._opened


class Shelf:
    """Opens the clips of a run, for any number of threads; keeps what it found of driving clips.

    Its memory is that of the clips being opened: T x S x S x 3 bytes for each thread. Close it.

    Args:
        sources: usable source clips by content hash, with their preparation.
        driving: usable driving clips by `driving_key`, with theirs.
        recipe: of the run.
        runner: holds the model.
        detector: finds faces, for the driving clips' signals.
        reader: decodes; PyAV where left out.
        batch_size: generator rows per batch.
        meters: where the time goes.
        store: keeps the motion of driving clips for the next run.
        lanes: threads that open clips.
    """

    def __init__(
        self,
        *,
        sources: Mapping[str, tuple[SourceClip, Prepared]],
        driving: Mapping[str, tuple[DrivingClip, Prepared]],
        recipe: BuildRecipe,
        runner: Runner,
        detector: Detector,
        batch_size: int,
        meters: Meters,
        store: DrivingStore,
        reader: FrameReader | None = None,
        lanes: int = 1,
    ) -> None:
        self.sources = sources
        self.driving = driving
        self._recipe = recipe
        self._runner = runner
        self._detector = detector
        self._reader = reader
        self._batch_size = batch_size
        self._meters = meters
        self._store = store
        self._lanes = lanes
        self._model = SharedLane(runner.device, name="model")
        self._driving: dict[str, OpenDriving] = {}
        self._driving_locks = {key: threading.Lock() for key in driving}
        self._failed: dict[str, tuple[type[MediaError], Path, str, str]] = {}

    def open_source(self, sha256: str) -> OpenSource:
        """The source with its pixels.

        Raises:
            MediaError: the file changed or went away since it was prepared.
        """
        clip, prepared = self.sources[sha256]
        frames = self.source_frames(sha256)
        image = frames[prepared.source_index]

        def prepare() -> tuple[SourceFeatures, Keypoints]:
            with self._meters.busy("source features", clips=1, frames=1):
                return prepare_source(image, runner=self._runner)

        features, keypoints = self._model(prepare)
        with self._busy("source screen", 1):
            seen = measure(image[None], self._detector, every_n=1)
        return OpenSource(clip, prepared, frames, features, keypoints, seen)

    def source_frames(self, sha256: str) -> Pixels:
        """The canonical frames alone.

        Raises:
            MediaError: the file changed or went away since it was prepared.
        """
        clip, prepared = self.sources[sha256]
        with (
            self._failing_once(sha256),
            self._busy("decode", prepared.frames),
        ):
            return self._frames(clip, prepared)

    def driving_signals(self) -> list[tuple[Action, Signals]]:
        """Action and motion of every driving clip opened so far, in the order of the plan."""
        found = [self._driving[key] for key in self.driving if key in self._driving]
        return [(opened.clip.action, opened.signals) for opened in found]

    def open_driving(self, key: str) -> OpenDriving:
        """The driving clip's keypoints and signals; decoded at its first use of all runs.

        Raises:
            MediaError: the file changed or went away since it was prepared.
        """
        with self._driving_locks[key]:
            if key not in self._driving:
                with self._failing_once(key):
                    self._driving[key] = self._look_at_driving(key, *self.driving[key])
            return self._driving[key]

    def transfer(self, source: OpenSource, driving: OpenDriving) -> Keypoints:
        """The driving keypoints carried over to the source, as the recipe says; T rows.

        Raises:
            FaceError: `no-transfer`, the keypoints span no area, so the motion has no scale; or
                `no-face`, the best frame is wanted and the source image shows none.
        """
        motion = self._recipe.motion
        try:
            initial = self._best_frame(source, driving) if motion.best_frame else 0
            carried = transfer(
                source.keypoints, driving.keypoints, driving.keypoints[initial], mode=motion.mode
            )
            settle(self._runner.device)
            return carried
        except (MediaError, ShapeError, UsageError):
            raise
        except DfmError as error:
            raise FaceError(source.clip.path, "no-transfer", str(error)) from error

    def close(self) -> None:
        """End the thread that calls the model."""
        self._model.close()

    def _best_frame(self, source: OpenSource, driving: OpenDriving) -> int:
        image = source.frames[source.prepared.source_index][None]
        track = look(image, self._detector, every_n=1)
        if track is None:
            raise FaceError(source.clip.path, "no-face", "no face in the framed source image")
        return find_best_frame(track.landmarks[0], driving.track.landmarks)

    def _look_at_driving(self, key: str, clip: DrivingClip, prepared: Prepared) -> OpenDriving:
        motion = self._store.read(key, device=self._runner.device)
        if motion is None:
            motion = self._find_motion(clip, prepared)
            self._store.write(key, motion)
        settle(self._runner.device)  # others take it from here
        return OpenDriving(clip, prepared, motion.keypoints, motion.signals, motion.track)

    def _find_motion(self, clip: DrivingClip, prepared: Prepared) -> DrivingMotion:
        with self._busy("driving decode", prepared.frames):
            frames = self._frames(clip, prepared)

        def prepare() -> Keypoints:
            with self._meters.busy("driving keypoints", clips=1, frames=len(frames)):
                return prepare_driving(frames, runner=self._runner, batch_size=self._batch_size)

        keypoints = self._model(prepare)
        with self._busy("driving screen", len(frames)):
            track = look(frames, self._detector, every_n=self._recipe.screen.every_n)
            if track is None:
                raise FaceError(clip.path, "no-face", "no face in the framed driving clip")
            signals = extract_signals(frames, track)
        return DrivingMotion(keypoints, signals, track)

    def _busy(self, stage: str, frames: int) -> AbstractContextManager[None]:
        """One clip, in one of the lanes."""
        return self._meters.busy(stage, clips=1, frames=frames, workers=self._lanes)

    @contextmanager
    def _failing_once(self, key: str) -> Iterator[None]:
        """Of a clip that cannot be opened say so at once the next time: many jobs may want it."""
        if key in self._failed:
            error_type, path, kind, reason = self._failed[key]
            raise error_type(path, kind, reason)
        try:
            yield
        except MediaError as error:  # its traceback would hold frames, so only its words are kept
            self._failed[key] = type(error), error.path, error.kind, error.reason
            raise

    def _frames(self, clip: SourceClip | DrivingClip, prepared: Prepared) -> Pixels:
        assert prepared.box is not None, "only usable clips are opened"
        return crop_clip(
            clip,
            prepared.box,
            size=self._runner.frame_size[0],
            limits=self._recipe.limits,
            clips=self._recipe.clips,
            first_frame=prepared.first_frame,
            reader=self._reader,
        )
