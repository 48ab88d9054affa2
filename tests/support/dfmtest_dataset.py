"""A tiny finished data set without a generator: two pairs, a fake of a still, two refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dfm_engine.clip import QUALITIES, Quality
from dfm_engine.jobs import FileFacts, Label, Marker, RunFolder, clip_id, media_path
from dfm_engine.manifest import rows_from_markers
from dfm_engine.media.encode import encode_clip, provenance_comment, rgb_to_i420
from dfm_engine.quarantine import QuarantineRow
from dfm_engine.recipe import BuildRecipe, to_toml

CONTRACT = {"recipe_hash": "a" * 16, "weights_sha256": "b" * 64, "batch_size": 8, "device": "cpu"}
SPLITS = {"anna": "train", "bert": "test"}


def columns(label: Label, *, identity: str = "anna", **changes: Any) -> dict[str, Any]:
    """Values for every clip column that must have one, and some that need not."""
    values: dict[str, Any] = {
        "synthetic": label == "fake",
        "identity": identity,
        "frames": 3,
        "fps": 25,
        "width": 32,
        "height": 32,
        "source_sha256": clip_id({"source": identity}) * 4,
        "source_path": f"{identity}/clip.mp4",
        "source_dataset": "folder",
        "source_is_still": False,
        "source_frame": 1,
        "source_yaw_deg": -2.5,
        "box_x0": -3.25,
        "box_y0": 0.0,
        "box_x1": 60.75,
        "box_y1": 64.0,
        "recipe_hash": "a" * 16,
        "media_contract": "test",
        "dfm_version": "0.1.0",
    }
    if label == "fake":
        values |= {
            "action": "smile",
            "driving_sha256": "d" * 64,
            "driving_path": "smile/01.mp4",
            "generator": "fomm",
            "weights_sha256": "b" * 64,
            "seed": 7,
            "screen_passed": True,
            "screen_agreement": 0.875,
        }
    return values | changes


def make_clip(
    folder: RunFolder,
    label: Label,
    *,
    seed: int,
    outcome: Any = "passed",
    files: bool = True,
    **kw: Any,
) -> Marker:
    """Encode a clip of noise and commit it."""
    values = columns(label, **kw)
    clip = clip_id({"label": label, "seed": seed})
    shape = (values["frames"], values["height"], values["width"], 3)
    i420 = rgb_to_i420(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))
    comment = provenance_comment({"synthetic": label == "fake", "clip_id": clip})
    qualities: tuple[Quality, ...] = QUALITIES if outcome == "passed" else ("raw",)
    facts: dict[Quality, FileFacts] = {}
    for quality in qualities if files else ():
        path = folder.out / media_path(label, values.get("action"), clip, quality)
        done = encode_clip(i420, path, quality=quality, fps=values["fps"], comment=comment)
        facts[quality] = FileFacts(size_bytes=done.size_bytes, sha256=done.sha256)
    marker = Marker(
        clip_id=clip,
        label=label,
        outcome=outcome,
        files=facts,
        columns=values,
        measurements={"blinks": seed},
    )
    folder.commit(marker)
    return marker


def open_run(out: Path, **changes: Any) -> RunFolder:
    """Open a run's folder with the contract of these tests."""
    return RunFolder.open(out, contract=CONTRACT | changes, recipe_toml=to_toml(BuildRecipe()))


def make_dataset(out: Path) -> dict[str, Marker]:
    """Build and finish; returns the markers by a name."""
    with open_run(out) as folder:
        real = make_clip(folder, "real", seed=1)
        other = make_clip(folder, "real", seed=2, identity="bert", frames=4)
        made = {
            "real": real,
            "other real": other,
            "fake": make_clip(folder, "fake", seed=3, pair_clip_id=real.clip_id),
            "other fake": make_clip(
                folder,
                "fake",
                seed=4,
                identity="bert",
                frames=4,
                action="nod",
                pair_clip_id=other.clip_id,
            ),
            "of a still": make_clip(folder, "fake", seed=5, source_is_still=True),
            "refused": make_clip(
                folder, "fake", seed=6, outcome="refused", pair_clip_id=real.clip_id
            ),
            "dropped": make_clip(folder, "fake", seed=7, outcome="refused", files=False),
        }
        markers = folder.committed().values()
        splits = {m.clip_id: SPLITS[m.columns["identity"]] for m in markers}
        lost = QuarantineRow(
            path=r"bad \xff.mp4", stage="probe", kind="truncated", reason="cut short"
        )
        folder.write_tables(rows_from_markers(markers, splits=splits), [lost])
    return made
