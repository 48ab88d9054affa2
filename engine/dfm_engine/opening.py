"""From a candidate to a job the generator can begin: its clips opened, the motion carried over.

    opener = Opener(shelf, naming)
    with MapAhead(opener.open, opener.in_order(wave, stop), workers=6, ...) as opened:
        for job in opened:          # an OpenJob, or an Unopened with the reason

Lanes open several candidates at once. Those of one source come in a row and share it: the first to
ask opens it, the others wait for that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dfm_engine.columns import text_of_path
from dfm_engine.errors import MediaError
from dfm_engine.fomm.values import Keypoints
from dfm_engine.interrupts import StopRequest
from dfm_engine.naming import Naming
from dfm_engine.plan import Candidate
from dfm_engine.quarantine import QuarantineRow
from dfm_engine.shelf import OpenDriving, OpenSource, SharedSource, Shelf

__all__ = ["OpenJob", "Opener", "Unopened", "refusal"]


@dataclass(frozen=True, slots=True)
class OpenJob:
    """A candidate with its clips opened and the motion carried over; `kp_driving` has T rows."""

    candidate: Candidate
    clip_id: str
    source: OpenSource
    driving: OpenDriving
    kp_driving: Keypoints


@dataclass(frozen=True, slots=True)
class Unopened:
    """A candidate whose clips cannot be opened, and why."""

    candidate: Candidate
    reason: QuarantineRow


class Opener:
    """Opens candidates, for any number of threads.

    Args:
        shelf: the clips.
        naming: of the jobs.
    """

    def __init__(self, shelf: Shelf, naming: Naming) -> None:
        self._shelf = shelf
        self._naming = naming

    def in_order(
        self, wave: Iterable[Candidate], stop: StopRequest
    ) -> Iterator[tuple[Candidate, SharedSource]]:
        """What `open` is called with.

        Args:
            wave: those of one source in a row.
            stop: once set there is no further one.
        """
        source: SharedSource | None = None
        for candidate in wave:
            if stop:
                return
            if source is None or source.sha256 != candidate.source:
                source = SharedSource(self._shelf, candidate.source)
            yield candidate, source

    def open(self, given: tuple[Candidate, SharedSource]) -> OpenJob | Unopened:
        """Open the clips of a candidate; one that cannot be read costs the candidate."""
        candidate, shared = given
        name = self._naming.fake_id(candidate)
        try:
            driving = self._shelf.open_driving(candidate.driving)
            source = shared.open()
            kp_driving = self._shelf.transfer(source, driving)
        except MediaError as error:
            return Unopened(candidate, refusal(name, error))
        return OpenJob(candidate, name, source, driving, kp_driving)


def refusal(name: str, error: MediaError) -> QuarantineRow:
    """Of a job whose clips cannot be opened."""
    return QuarantineRow(
        path=text_of_path(error.path.name),
        stage="open",
        kind=error.kind,
        reason=error.reason,
        job_id=name,
    )
