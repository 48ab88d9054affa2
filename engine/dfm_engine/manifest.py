"""The manifest: one row per video file, the truth about a data set.

Rows are rebuilt from the commit markers (`rows_from_markers`), so the manifest can be deleted at
any time; the split and the extra flag, which depend on the whole set, are given from outside. The
columns below are the one place that names them: the Parquet schema, the checks on a marker and
`docs/manifest.md` (`python -m dfm_engine.manifest > docs/manifest.md`) all come from here.

Animations that the screen refused stay as rows, with their raw clip if the recipe keeps it and with
no path otherwise.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfm_engine.clip import QUALITIES
from dfm_engine.columns import Row, column, describe, read_table, write_table
from dfm_engine.quarantine import QUARANTINE_COLUMNS

if TYPE_CHECKING:
    from dfm_engine.jobs import Marker

SET_COLUMNS = (
    column("split", "string", "train, val or test; a fake is where its real twin is", null=True),
    column("is_extra", "bool", "a fake that passed, but beyond its action's quota"),
)
"""What only the whole set can say."""

FILE_COLUMNS = (
    column("path", "string", "of the file, relative to the manifest's folder", null=True),
    column("clip_id", "string", "16 hex digits of everything that decides the clip's pixels"),
    column("label", "string", "real or fake"),
    column("quality", "string", "raw, c23 or c40; null where no file was kept", null=True),
    column("outcome", "string", "passed, or refused by the screen"),
    column("size_bytes", "int64", "of the file", unit="bytes", null=True),
    column("sha256", "string", "of the file, hex", null=True),
    column("crf", "int32", "x264's constant rate factor", null=True),
    column("preset", "string", "x264's preset", null=True),
    column("x264_options", "string", "as x264 wrote them into the bitstream", null=True),
    column("measurements", "string", "everything that was measured, a JSON object"),
)
"""What a row has beyond its clip's columns."""

CLIP_COLUMNS = (
    column("synthetic", "bool", "true for what a generator made; also in the file's comment"),
    column("action", "string", "facial action of a fake; null for a real clip", null=True),
    column("identity", "string", "who is seen, unique across the data set"),
    column("pair_clip_id", "string", "of a fake: its real twin; null from a still", null=True),
    column("frames", "int32", "pictures in the clip; equal in a fake and its real twin"),
    column("fps", "int32", "pictures per second", unit="1/s"),
    column("width", "int32", "of a picture", unit="px"),
    column("height", "int32", "of a picture", unit="px"),
    column("source_sha256", "string", "of the real file that the clip shows, hex"),
    column("source_path", "string", r"that file below --real; odd bytes as \xNN, \ as \\"),
    column("source_dataset", "string", "reader that listed it: voxceleb1, adfes, folder, ..."),
    column("source_is_still", "bool", "the source is a picture, so there is no real twin"),
    column("source_frame", "int32", "frame taken as source image", null=True),
    column("source_score", "float64", "its rank: frontal and sharp", null=True),
    column("source_yaw_deg", "float64", "head turn in that frame", unit="degrees", null=True),
    column("source_pitch_deg", "float64", "head nod in that frame", unit="degrees", null=True),
    column("source_roll_deg", "float64", "head tilt in that frame", unit="degrees", null=True),
    column("source_sharpness", "float64", "sharpness of the face in that frame", null=True),
    column("box_x0", "float64", "left edge of the face box in the source file", unit="px"),
    column("box_y0", "float64", "its upper edge", unit="px"),
    column("box_x1", "float64", "its right edge", unit="px"),
    column("box_y1", "float64", "its lower edge", unit="px"),
    column("driving_sha256", "string", "of the driving file, hex", null=True),
    column("driving_path", "string", "that file below --driving, written as above", null=True),
    column("driving_start_s", "float64", "first moment used of it", unit="s", null=True),
    column("driving_end_s", "float64", "end of the range; null: its end", unit="s", null=True),
    column("driving_mirrored", "bool", "it was flipped back on decoding", null=True),
    column("take", "string", "take of the driving clip, as listed", null=True),
    column("actor", "string", "who performed it, as listed", null=True),
    column("consent", "string", "what the driving list says of the actor's consent", null=True),
    column("generator", "string", "name of the animation model", null=True),
    column("weights_sha256", "string", "of its weights, hex", null=True),
    column("motion_mode", "string", "how motion was carried: rel_adapt, abs, ...", null=True),
    column("align_corners", "bool", "sampling convention of the generator", null=True),
    column("seed", "int64", "of the job", null=True),
    column("screen_mode", "string", "enforce or record", null=True),
    column("screen_passed", "bool", "verdict of the screen", null=True),
    column("screen_reasons", "string", "why not, separated by semicolons", null=True),
    column("screen_face_share", "float64", "frames with a face of those looked at", null=True),
    column("screen_agreement", "float64", "correlation with the driving motion", null=True),
    column("screen_amplitude", "float64", "motion, as a multiple of the driving's", null=True),
    column("recipe_hash", "string", "16 hex digits of the resolved recipe"),
    column("media_contract", "string", "version of colour conversion and encoding"),
    column("dfm_version", "string", "of dfm-engine when the clip was made"),
)
"""What a marker says of its clip; the same in every quality."""

COLUMNS = (*FILE_COLUMNS, *SET_COLUMNS, *CLIP_COLUMNS)


def rows_from_markers(
    markers: Iterable[Marker],
    *,
    splits: Mapping[str, str] | None = None,
    extras: Collection[str] = (),
) -> list[Row]:
    """The rows of a data set, in the manifest's order.

    Args:
        markers: of every committed clip.
        splits: part by clip id; a clip that is not named has none.
        extras: clip ids of the fakes beyond their quota.
    """
    from dfm_engine.media.encode import ENCODER, x264_options_at

    rows: list[Row] = []
    for marker in markers:
        clip: Row = {name: None for name in (c.name for c in COLUMNS)}
        clip |= marker.columns
        clip |= {
            "clip_id": marker.clip_id,
            "label": marker.label,
            "outcome": marker.outcome,
            "split": (splits or {}).get(marker.clip_id),
            "is_extra": marker.clip_id in extras,
            "measurements": json.dumps(dict(marker.measurements), sort_keys=True),
        }
        rows += [
            clip
            | {
                "quality": quality,
                "path": marker.path(quality),
                "size_bytes": file.size_bytes,
                "sha256": file.sha256,
                "crf": int(ENCODER[quality]["crf"]),
                "preset": ENCODER[quality]["preset"],
                "x264_options": x264_options_at(quality, marker.columns["fps"]),
            }
            for quality, file in marker.files.items()
        ] or [clip]
    return sorted(rows, key=row_order)


def row_order(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Sort key of the manifest: fakes by action, then reals; a clip's qualities together."""
    quality = row["quality"]
    rank = QUALITIES.index(quality) if quality in QUALITIES else -1
    return row["label"], row["action"] or "", row["clip_id"], rank


def write_manifest(rows: Iterable[Mapping[str, Any]], path: Path) -> bytes:
    """Write rows, sorted; equal rows give equal bytes, which are returned.

    Raises:
        DfmError: a row does not fit the columns.
        EnvironmentUnfit: the file cannot be written.
    """
    return write_table(COLUMNS, sorted(rows, key=row_order), path, kind="manifest")


def read_manifest(path: Path) -> list[Row]:
    """Read a manifest; every row has every column.

    Raises:
        InputError: absent, damaged, or of another version.
    """
    return read_table(COLUMNS, path)


def documentation() -> str:
    """The text of docs/manifest.md."""
    return (
        "# The manifest\n\n"
        "Generated by `python -m dfm_engine.manifest > docs/manifest.md`; a test keeps it so.\n\n"
        "`manifest.parquet` has one row per video file, sorted by label, action, clip and "
        "quality. Each column's unit and description are also in the Parquet schema.\n\n"
        f"{describe(COLUMNS)}\n"
        "## The quarantine\n\n"
        "`quarantine.parquet` has one row per input or job that could not be used.\n\n"
        f"{describe(QUARANTINE_COLUMNS)}"
    )


if __name__ == "__main__":
    sys.stdout.write(documentation())
