"""The way of a fake clip, stage by stage: open, animate, screen, encode, commit.

Each stage is a generator of typed objects, so memory stays flat: in flight are the jobs of one
generator batch and the clips that the encode pool has taken. `build.py` calls `make_wave`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from dfm_engine.animate import AnimationJob, animate_jobs
from dfm_engine.backends import Runner
from dfm_engine.clip import QUALITIES, Pixels, Quality, SourceClip
from dfm_engine.columns import text_of_path
from dfm_engine.errors import MediaError, WorkerDied
from dfm_engine.interrupts import StopRequest
from dfm_engine.jobs import FileFacts, Label, Marker, RunFolder
from dfm_engine.media.encode import EncodedFile
from dfm_engine.media.pool import EncodePool
from dfm_engine.naming import Naming
from dfm_engine.plan import Candidate, Outcome
from dfm_engine.progress import Meters
from dfm_engine.quarantine import QuarantineRow
from dfm_engine.recipe import BuildRecipe
from dfm_engine.screen import Detector, ExternalVerdicts, Verdict, screen_animation
from dfm_engine.shelf import OpenDriving, OpenSource, Shelf


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A candidate with its clips opened."""

    candidate: Candidate
    clip_id: str
    source: OpenSource
    driving: OpenDriving


@dataclass(frozen=True, slots=True)
class Screened:
    """An animation with its verdict."""

    job: OpenJob
    frames: Pixels
    verdict: Verdict


@dataclass(slots=True)
class Writing:
    """An animation that the encode pool has taken."""

    screened: Screened
    qualities: tuple[Quality, ...]
    future: Future[dict[Quality, EncodedFile]] | None = field(default=None)


class Workshop:
    """Makes the clips of a run; owns nothing, joins everything.

    Args:
        folder: of the run, open.
        shelf: the clips.
        naming: ids, comments, columns.
        runner, detector, pool: the machines.
        recipe: of the run.
        batch_size: generator rows per batch.
        meters: where the time goes.
        external: verdicts imported from elsewhere.
    """

    def __init__(
        self,
        *,
        folder: RunFolder,
        shelf: Shelf,
        naming: Naming,
        runner: Runner,
        detector: Detector,
        pool: EncodePool,
        recipe: BuildRecipe,
        batch_size: int,
        meters: Meters,
        external: ExternalVerdicts | None = None,
    ) -> None:
        self.committed = folder.committed()
        self._folder = folder
        self._shelf = shelf
        self._naming = naming
        self._runner = runner
        self._detector = detector
        self._pool = pool
        self._recipe = recipe
        self._batch_size = batch_size
        self._meters = meters
        self._external = external
        self._twins: dict[str, Future[dict[Quality, EncodedFile]]] = {}

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
            stop: once set no further candidate is begun.

        Raises:
            EnvironmentUnfit: the disk is full or the like; what is committed stays so.
        """
        ordered = sorted(wave, key=lambda c: (c.source, c.driving, c.action))
        screened = self._screen(self._animate(self._open(ordered, record, stop)))
        for done, outcome in self._write(screened):
            record(done, outcome)

    def ensure_twin(self, candidate: Candidate) -> bool:
        """Make the real twin of a committed fake where it is not; False if that fails."""
        clip, _ = self._shelf.sources[candidate.source]
        frames = self._shelf.driving[candidate.driving][1].frames
        twin = self._naming.real_id(candidate.source, frames)
        if clip.is_still or twin in self.committed:
            return True
        try:
            pixels = self._shelf.source_frames(candidate.source)
        except MediaError as error:
            self._give_up(twin, error)
            return False
        return self._write_twin(candidate.source, pixels[:frames])

    def _open(
        self,
        wave: Iterable[Candidate],
        record: Callable[[Candidate, Outcome], None],
        stop: StopRequest,
    ) -> Iterator[OpenJob]:
        for candidate in wave:
            if stop:
                return
            name = self._naming.fake_id(candidate)
            try:
                driving = self._shelf.open_driving(candidate.driving)
                source = self._shelf.open_source(candidate.source)
            except MediaError as error:
                self._give_up(name, error)
                record(candidate, Outcome.FAILED)
                continue
            yield OpenJob(candidate, name, source, driving)

    def _animate(self, jobs: Iterable[OpenJob]) -> Iterator[tuple[OpenJob, Pixels]]:
        animations = animate_jobs(
            (
                AnimationJob(
                    key=job,
                    source=job.source.features,
                    kp_source=job.source.keypoints,
                    kp_driving=self._shelf.transfer(job.source, job.driving),
                )
                for job in jobs
            ),
            runner=self._runner,
            batch_size=self._batch_size,
        )
        for animation, frames in animations:
            assert isinstance(animation.key, OpenJob)
            yield animation.key, frames

    def _screen(self, animations: Iterator[tuple[OpenJob, Pixels]]) -> Iterator[Screened]:
        while True:
            with self._meters.busy("animate"):
                entry = next(animations, None)
            if entry is None:
                return
            job, frames = entry
            animate = self._meters.stage("animate")
            animate.clips, animate.frames = animate.clips + 1, animate.frames + len(frames)
            external = self._external.of(job.clip_id) if self._external else ()
            with self._meters.busy("screen", clips=1, frames=len(frames)):
                verdict = screen_animation(
                    job.driving.signals,
                    frames,
                    job.candidate.action,
                    detector=self._detector,
                    settings=self._recipe.screen,
                    external=external,
                )
            yield Screened(job, frames, verdict)

    def _write(self, screened: Iterable[Screened]) -> Iterator[tuple[Candidate, Outcome]]:
        """Hand clips to the pool and commit them in the order in which they came."""
        writing: deque[Writing] = deque()
        for item in screened:
            qualities: tuple[Quality, ...] = QUALITIES
            if not item.verdict.keep:
                qualities = ("raw",) if self._recipe.plan.keep_rejects else ()
            entry = Writing(item, qualities)
            if qualities:
                entry.future = self._submit_fake(entry)
            if item.verdict.keep:
                self._begin_twin(item.job, len(item.frames))
            writing.append(entry)
            while writing and _is_done(writing[0]):
                yield self._commit(writing.popleft())
        while writing:
            yield self._commit(writing.popleft())

    def _commit(self, entry: Writing) -> tuple[Candidate, Outcome]:
        job, verdict = entry.screened.job, entry.screened.verdict
        files: dict[Quality, EncodedFile] | None = {}
        if entry.qualities:
            files = self._encoded(
                job.clip_id,
                job.source.clip.path,
                lambda: self._submit_fake(entry),
                first=entry.future,
            )
            if files is None:
                return job.candidate, Outcome.FAILED
        frames = entry.screened.frames
        has_twin = verdict.keep and not job.source.clip.is_still
        # The twin first: a fake that is committed has its real half beside it.
        if has_twin and not self._write_twin(
            job.candidate.source, job.source.frames[: len(frames)]
        ):
            return job.candidate, Outcome.FAILED
        self._commit_marker(
            Marker(
                clip_id=job.clip_id,
                label="fake",
                outcome="passed" if verdict.keep else "refused",
                files=_facts(files),
                columns=self._naming.fake_columns(job.source, job.driving, len(frames), verdict),
                measurements={"screen": verdict.to_json()},
            )
        )
        return job.candidate, Outcome.PASSED if verdict.keep else Outcome.REFUSED

    def _submit_fake(self, entry: Writing) -> Future[dict[Quality, EncodedFile]]:
        job = entry.screened.job
        return self._submit(
            "fake",
            job.candidate.action.value,
            job.clip_id,
            entry.screened.frames,
            self._naming.fake_comment(job.source, job.driving),
            entry.qualities,
        )

    def _begin_twin(self, job: OpenJob, frames: int) -> None:
        """Let the real twin be encoded beside its fake, once."""
        name = self._naming.real_id(job.candidate.source, frames)
        is_known = name in self.committed or name in self._twins
        if not is_known and not job.source.clip.is_still:
            self._twins[name] = self._submit_real(name, job.source.clip, job.source.frames[:frames])

    def _write_twin(self, source_sha256: str, frames: Pixels) -> bool:
        """Encode and commit a real clip unless it is; False if it went into quarantine."""
        clip, prepared = self._shelf.sources[source_sha256]
        name = self._naming.real_id(source_sha256, len(frames))
        if name in self.committed:
            return True
        files = self._encoded(
            name,
            clip.path,
            lambda: self._submit_real(name, clip, frames),
            first=self._twins.pop(name, None),
        )
        if files is None:
            return False
        self._commit_marker(
            Marker(
                clip_id=name,
                label="real",
                files=_facts(files),
                columns=self._naming.real_columns(clip, prepared, len(frames)),
            )
        )
        return True

    def _encoded(
        self,
        name: str,
        path: Path,
        submit: Callable[[], Future[dict[Quality, EncodedFile]]],
        *,
        first: Future[dict[Quality, EncodedFile]] | None = None,
    ) -> dict[Quality, EncodedFile] | None:
        """The files of a clip, tried again while its worker dies; None once it is given up."""
        future = first or submit()
        while True:
            try:
                return future.result()
            except WorkerDied as error:
                blamed = text_of_path(path.name)
                if self._folder.quarantine.record_death(name, error, path=blamed) is not None:
                    return None
                future = submit()

    def _submit_real(
        self, name: str, clip: SourceClip, frames: Pixels
    ) -> Future[dict[Quality, EncodedFile]]:
        return self._submit("real", None, name, frames, self._naming.real_comment(clip), QUALITIES)

    def _submit(
        self,
        label: Label,
        action: str | None,
        name: str,
        frames: Pixels,
        comment: str,
        qualities: tuple[Quality, ...],
    ) -> Future[dict[Quality, EncodedFile]]:
        outputs: dict[Quality, Path] = {
            quality: self._folder.media_path(label, action, name, quality) for quality in qualities
        }
        return self._pool.submit(
            frames, outputs=outputs, comment=comment, fps=self._recipe.clips.fps
        )

    def _commit_marker(self, marker: Marker) -> None:
        with self._meters.busy("commit", clips=1):
            self._folder.commit(marker)
        self.committed[marker.clip_id] = marker

    def _give_up(self, name: str, error: MediaError) -> None:
        self._folder.quarantine.add(
            QuarantineRow(
                path=text_of_path(error.path.name),
                stage="open",
                kind=error.kind,
                reason=error.reason,
                job_id=name,
            )
        )


def _is_done(entry: Writing) -> bool:
    return entry.future is None or entry.future.done()


def _facts(files: dict[Quality, EncodedFile]) -> dict[Quality, FileFacts]:
    return {
        quality: FileFacts(size_bytes=file.size_bytes, sha256=file.sha256)
        for quality, file in files.items()
    }
