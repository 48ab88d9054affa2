"""What is kept of a look at a clip, and that the next run goes on with the same answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from dfm_engine.clip import Box
from dfm_engine.errors import FaceError, MediaError
from dfm_engine.interrupts import StopRequest
from dfm_engine.media.probe import Probe
from dfm_engine.recipe import Limits
from dfm_engine.store import looks, planning
from dfm_engine.store.listing import DataListing, ListedClip
from dfm_engine.store.looks import Look, add_faces, crop_of_store, look_at_clips, resolve_crop
from dfm_engine.store.planning import PlannedClip, PrepareOptions, plan_clips

WIDE, SQUARE = Look(frames=9, width=64, height=48), Look(frames=9, width=48, height=48)
BOX = Box(1.0, 2.0, 33.0, 34.0)


def clip(name: str) -> ListedClip:
    return ListedClip(
        key=name,
        path=name,
        file=Path("/data", name),
        kind="video",
        clip_id=name,
        label="real",
        identity=name,
        sha256=name * 32,
    )


def faceless(name: str) -> FaceError:
    return FaceError(Path(name), "no-face", "nobody there")


def test_a_clip_without_a_face_keeps_its_size_and_its_vote(tmp_path: Path) -> None:
    def find(path: Path, look: Look) -> tuple[Box, int]:
        raise faceless(path.name)

    ((_, found),) = add_faces([(clip("a"), WIDE)], tmp_path, lambda: find)
    assert (found.stage, found.kind, found.reason) == ("face", "no-face", "nobody there")
    assert (found.width, found.height, found.frames) == (64, 48, 9)
    ((_, again),) = look_at_clips([clip("a")], tmp_path, limits=Limits(), workers=1)
    assert again == found
    assert resolve_crop("auto", [SQUARE, again]) == "face"
    assert resolve_crop("auto", [SQUARE, Look(kind="corrupt")]) == "whole"


def test_a_face_that_could_not_be_looked_for_now_is_looked_for_again(tmp_path: Path) -> None:
    def fail(path: Path, look: Look) -> tuple[Box, int]:
        raise MediaError(path, "io-error", "the share went away")

    ((_, found),) = add_faces([(clip("a"), WIDE)], tmp_path, lambda: fail)
    assert found.kind == "io-error"
    assert list(tmp_path.iterdir()) == []
    ((_, found),) = add_faces([(clip("a"), WIDE)], tmp_path, lambda: lambda path, look: (BOX, 2))
    ((_, kept),) = look_at_clips([clip("a")], tmp_path, limits=Limits(), workers=1)
    assert kept == found == replace(WIDE, box=BOX, first_frame=2)


def test_the_crop_is_resolved_once_for_a_store(tmp_path: Path) -> None:
    assert crop_of_store("auto", [Look(kind="io-error")], tmp_path) == "whole"
    assert list(tmp_path.iterdir()) == []  # nothing decodes: nothing is decided
    assert crop_of_store("auto", [WIDE, SQUARE], tmp_path) == "face"
    assert crop_of_store("auto", [SQUARE], tmp_path) == "face"
    (tmp_path / "crop.json").write_text("[]")
    assert crop_of_store("auto", [SQUARE], tmp_path) == "whole"
    assert crop_of_store("auto", [WIDE], tmp_path) == "whole"
    assert crop_of_store("face", [SQUARE], tmp_path) == "face"


def test_a_run_that_goes_on_cuts_its_clips_as_the_first_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only clip that is not square has no face: without it, all would be square."""
    sizes = {"a": (48, 48), "b": (64, 48)}
    probed: list[str] = []

    def probe_all(paths: Sequence[Path], **_: object):
        for index, path in enumerate(paths):
            probed.append(path.name)
            width, height = sizes[path.name]
            probe = Probe(
                path=path, verdict="accept", frames=9, width=width, height=height, fps=25.0
            )
            yield index, probe, 0

    def find(path: Path, look: Look) -> tuple[Box, int]:
        if path.name == "b":
            raise faceless("b")
        return BOX, 0

    monkeypatch.setattr(looks, "probe_all", probe_all)
    monkeypatch.setattr(planning, "find_face", lambda device, limits: find)
    data = DataListing(root=Path("/data"), clips=(clip("a"), clip("b")), reader="folder")
    options = PrepareOptions(data=Path("/data"), out=tmp_path, frames=2)

    def plan() -> list[PlannedClip]:
        return plan_clips(
            options, data, tmp_path / "looks", limits=Limits(), workers=1, stop=StopRequest()
        )

    first = plan()
    assert [planned.box for planned in first] == [BOX, None]
    assert first[1].refusal is not None
    assert plan() == first
    assert probed == ["a", "b"]
