"""The way of a fake clip, stage by stage: open, animate, screen, encode, commit.

    lanes `open` ─► [queue] ─► thread `animate` ─► [queue] ─► lanes `screen` ─► encode pool, commit

Each stage is a generator of typed objects, or a function that several threads (`lanes`) call, clip
by clip; they are joined by queues of bounded length, so memory stays flat and all stages work at
once: while a batch is generated the next sources are decoded and the last animations are screened.
Order is kept throughout, so a build's bytes do not depend on the timing, nor on the lanes.

In memory at once, beside the encode pool's: the source clips of `lanes.open` + OPEN_JOBS jobs and
of two batches, and the animations of ANIMATED_CLIPS + `lanes.screen` + SCREENED_CLIPS clips, each
with its source clip (T x S x S x 3 bytes, 16 MB for 80 frames of 256 x 256; on a GPU half as much
again for the encoder, until the screen has seen the frames). `build.py` calls `make_wave`.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import torch

from dfm_engine.animate import Animated, AnimationJob, animate_jobs
from dfm_engine.backends import Runner
from dfm_engine.clip import QUALITIES, Pixels, Quality, SourceClip
from dfm_engine.encoding import Encoders, Order
from dfm_engine.errors import EnvironmentUnfit, MediaError
from dfm_engine.interrupts import StopRequest
from dfm_engine.jobs import FileFacts, Marker, RunFolder
from dfm_engine.lanes import Lanes, lane
from dfm_engine.media.encode import EncodedFile
from dfm_engine.naming import Naming
from dfm_engine.opening import Opener, OpenJob, Unopened, refusal
from dfm_engine.overlap import Ahead, MapAhead
from dfm_engine.plan import Candidate, Outcome
from dfm_engine.prepare import PASSING_KINDS
from dfm_engine.progress import Meters
from dfm_engine.recipe import BuildRecipe
from dfm_engine.screen import Detector, ExternalVerdicts, Verdict, screen_animation
from dfm_engine.shelf import Shelf
from dfm_engine.torch_threads import adopt_threads

_log = logging.getLogger(__name__)

OPEN_JOBS = 2
"""Jobs whose clips are open and that wait for the generator."""

ANIMATED_CLIPS = 2
"""Animations that wait for the screen."""

SCREENED_CLIPS = 1
"""Verdicts that wait for the encode pool to have room."""


@dataclass(frozen=True, slots=True)
class Screened:
    """An animation with its verdict.

    Attributes:
        job: what was wanted.
        count: its frames.
        pixels: of them, for the encoder: I420 where the generator's device made it, else RGB.
        verdict: of the screen.
    """

    job: OpenJob
    count: int
    pixels: Pixels
    verdict: Verdict


class Workshop:
    """Makes the clips of a run; owns nothing, joins everything.

    Args:
        folder: of the run, open.
        shelf: the clips.
        naming: ids, comments, columns.
        runner, detector, encoders: the machines.
        recipe: of the run.
        batch_size: generator rows per batch.
        meters: where the time goes.
        external: verdicts imported from elsewhere.
        lanes: clips that are opened and screened at once.

    Attributes:
        committed: markers of the clips that are done.
    """

    def __init__(
        self,
        *,
        folder: RunFolder,
        shelf: Shelf,
        naming: Naming,
        runner: Runner,
        detector: Detector,
        encoders: Encoders,
        recipe: BuildRecipe,
        batch_size: int,
        meters: Meters,
        external: ExternalVerdicts | None = None,
        lanes: Lanes | None = None,
    ) -> None:
        self.committed = folder.committed()
        self._folder = folder
        self._shelf = shelf
        self._naming = naming
        self._runner = runner
        self._detector = detector
        self._encoders = encoders
        self._recipe = recipe
        self._batch_size = batch_size
        self._meters = meters
        self._lanes = lanes or Lanes()
        self._external = external
        self._twins: dict[str, Order] = {}
        self._unopened: deque[Candidate] = deque()
        rows = folder.quarantine.rows()
        self._given_up = {name for name, row in rows.items() if row.kind not in PASSING_KINDS}

    def known_outcome(self, candidate: Candidate) -> Outcome | None:
        """What an earlier run made of a candidate; None if it is to be made."""
        name = self._naming.fake_id(candidate)
        if name in self._given_up:
            return Outcome.FAILED
        if name not in self.committed:
            return None
        if self.committed[name].outcome == "refused":
            return Outcome.REFUSED
        return Outcome.PASSED if self._ensure_twin(candidate) else Outcome.FAILED

    def make_wave(
        self,
        wave: Iterable[Candidate],
        *,
        record: Callable[[Candidate, Outcome], None],
        stop: StopRequest,
    ) -> None:
        """Make the wanted animations and, of those kept, the real twins; commit each.

        The candidates of one source are made in a row, so that it is decoded once.

        Args:
            wave: what to make.
            record: told the outcome of each, when it is final.
            stop: once set no further candidate is begun; those that are open are made.

        Raises:
            EnvironmentUnfit: the disk is full or the like; what is committed stays so.
        """
        ordered = sorted(wave, key=lambda c: (c.source, c.driving, c.action))
        if not ordered:
            return
        self._encoders.start()  # they start beside the first clips being opened
        try:
            self._run_wave(ordered, record, stop)
        except torch.OutOfMemoryError as error:  # the generator's own are met by smaller batches
            raise EnvironmentUnfit(
                f"{self._runner.device} ran out of memory beside the generator ({error}); lower "
                "plan.batch_size in the recipe, and use another --out"
            ) from error

    def _run_wave(
        self,
        ordered: list[Candidate],
        record: Callable[[Candidate, Outcome], None],
        stop: StopRequest,
    ) -> None:
        device = self._runner.device
        opener, within = Opener(self._shelf, self._naming), partial(lane, device)
        # On a CPU the generator's rows have the cores, each one to itself.
        threads = 1 if device.type == "cpu" else torch.get_num_threads()
        with (
            MapAhead(
                opener.open,
                opener.in_order(ordered, stop),
                workers=self._lanes.open,
                depth=self._lanes.open + OPEN_JOBS,
                name="open",
                within=within,
            ) as opened,
            Ahead(
                self._animate(self._openable(opened), threads),
                depth=ANIMATED_CLIPS,
                name="animate",
            ) as animated,
            MapAhead(
                self._screen,
                animated,
                workers=self._lanes.screen,
                depth=self._lanes.screen + SCREENED_CLIPS,
                name="screen",
                within=within,
            ) as screened,
        ):
            self._meters.queues["opened"] = lambda: (opened.waiting, opened.depth)
            self._meters.queues["animated"] = lambda: (animated.waiting, animated.depth)
            self._meters.queues["screened"] = lambda: (screened.waiting, screened.depth)
            for done, outcome in self._write(screened):
                record(done, outcome)
        while self._unopened:  # in the order of the wave, as all else
            record(self._unopened.popleft(), Outcome.FAILED)
        for twin in self._twins.values():  # begun for fakes that were given up
            self._encoders.remove(twin)
        self._twins.clear()

    def _ensure_twin(self, candidate: Candidate) -> bool:
        """Make the real twin of a committed fake where it is not; False if that fails."""
        clip, _ = self._shelf.sources[candidate.source]
        frames = self._shelf.driving[candidate.driving][1].frames
        name = self._naming.real_id(candidate.source, frames)
        if clip.is_still or name in self.committed:
            return True
        try:
            pixels = self._shelf.source_frames(candidate.source)
        except MediaError as error:
            self._folder.quarantine.add(refusal(name, error))
            return False
        return self._write_twin(clip, pixels[:frames])

    def _openable(self, opened: Iterator[OpenJob | Unopened]) -> Iterator[OpenJob]:
        """Those that could be opened; the others are given up."""
        for job in opened:
            if isinstance(job, Unopened):
                self._folder.quarantine.add(job.reason)
                self._unopened.append(job.candidate)
            else:
                yield job

    def _animate(self, jobs: Iterator[OpenJob], threads: int) -> Iterator[Animated]:
        """Thread `animate`."""
        adopt_threads(threads)

        def wanted() -> Iterator[AnimationJob]:
            while True:
                with self._meters.waiting():
                    job = next(jobs, None)
                if job is None:
                    return
                yield AnimationJob(
                    key=job,
                    source=job.source.features,
                    kp_source=job.source.keypoints,
                    kp_driving=job.kp_driving,
                )

        animations = animate_jobs(
            wanted(), runner=self._runner, batch_size=self._batch_size, on_halved=self._halve
        )
        while True:
            with self._meters.busy("animate"):
                made = next(animations, None)
            if made is None:
                return
            self._meters.count("animate", clips=1, frames=len(made.frames))
            yield made

    def _halve(self, batch_size: int) -> None:
        """The device has no memory for the planned batch: plan anew, for later runs too."""
        _log.warning("out of memory on %s: batches of %d rows", self._runner.device, batch_size)
        self._batch_size = batch_size
        self._folder.amend(batch_size=batch_size)

    def _screen(self, made: Animated) -> Screened:
        """In a lane."""
        job, frames = made.job.key, made.frames
        assert isinstance(job, OpenJob)
        external = self._external.of(job.clip_id) if self._external else ()
        with self._meters.busy("screen", clips=1, frames=len(frames), workers=self._lanes.screen):
            verdict = screen_animation(
                job.driving.signals,
                frames,
                job.candidate.action,
                detector=self._detector,
                settings=self._recipe.screen,
                source=job.source.look,
                external=external,
            )
        return Screened(job, len(frames), frames if made.i420 is None else made.i420, verdict)

    def _write(self, screened: Iterable[Screened]) -> Iterator[tuple[Candidate, Outcome]]:
        """Hand clips to the pool and commit them in the order in which they came."""
        writing: deque[tuple[Screened, Order]] = deque()
        for item in screened:
            order = self._fake_order(item)
            self._encoders.begin(order)
            if item.verdict.keep:
                self._begin_twin(item.job, item.count)
            writing.append((item, order))
            while writing and writing[0][1].is_done:
                yield self._commit(*writing.popleft())
        while writing:
            yield self._commit(*writing.popleft())

    def _commit(self, item: Screened, order: Order) -> tuple[Candidate, Outcome]:
        job, verdict = item.job, item.verdict
        files = self._encoders.finish(order)
        if files is None:
            self._given_up.add(job.clip_id)
            return job.candidate, Outcome.FAILED
        count = item.count
        has_twin = verdict.keep and not job.source.clip.is_still
        # The twin first: a fake that is committed has its real half beside it.
        if has_twin and not self._write_twin(job.source.clip, job.source.frames[:count]):
            self._encoders.remove(order)
            return job.candidate, Outcome.FAILED
        self._commit_marker(
            Marker(
                clip_id=job.clip_id,
                label="fake",
                outcome="passed" if verdict.keep else "refused",
                files=_facts(files),
                columns=self._naming.fake_columns(job.source, job.driving, count, verdict),
                measurements={"screen": verdict.to_json()},
            )
        )
        return job.candidate, Outcome.PASSED if verdict.keep else Outcome.REFUSED

    def _fake_order(self, item: Screened) -> Order:
        job = item.job
        qualities: tuple[Quality, ...] = QUALITIES
        if not item.verdict.keep:
            qualities = ("raw",) if self._recipe.plan.keep_rejects else ()
        return Order(
            clip_id=job.clip_id,
            label="fake",
            action=job.candidate.action.value,
            frames=item.pixels,
            qualities=qualities,
            comment=self._naming.fake_comment(job.source, job.driving),
            blamed=job.source.clip.path,
        )

    def _twin_order(self, clip: SourceClip, frames: Pixels) -> Order:
        return Order(
            clip_id=self._naming.real_id(clip.sha256, len(frames)),
            label="real",
            action=None,
            frames=frames,
            qualities=QUALITIES,
            comment=self._naming.real_comment(clip),
            blamed=clip.path,
        )

    def _begin_twin(self, job: OpenJob, count: int) -> None:
        """Let the real twin be encoded beside its fake, once."""
        name = self._naming.real_id(job.candidate.source, count)
        is_known = name in self.committed or name in self._twins or name in self._given_up
        if not is_known and not job.source.clip.is_still:
            self._twins[name] = self._twin_order(job.source.clip, job.source.frames[:count])
            self._encoders.begin(self._twins[name])

    def _write_twin(self, clip: SourceClip, frames: Pixels) -> bool:
        """Encode and commit a real clip unless it is; False if it is in quarantine."""
        name = self._naming.real_id(clip.sha256, len(frames))
        if name in self.committed:
            return True
        if name in self._given_up:
            return False
        files = self._encoders.finish(self._twins.pop(name, None) or self._twin_order(clip, frames))
        if files is None:
            self._given_up.add(name)
            return False
        _, prepared = self._shelf.sources[clip.sha256]
        self._commit_marker(
            Marker(
                clip_id=name,
                label="real",
                files=_facts(files),
                columns=self._naming.real_columns(clip, prepared, len(frames)),
            )
        )
        return True

    def _commit_marker(self, marker: Marker) -> None:
        with self._meters.busy("commit", clips=1):
            self._folder.commit(marker)
        self.committed[marker.clip_id] = marker


def _facts(files: dict[Quality, EncodedFile]) -> dict[Quality, FileFacts]:
    return {
        quality: FileFacts(size_bytes=file.size_bytes, sha256=file.sha256)
        for quality, file in files.items()
    }
