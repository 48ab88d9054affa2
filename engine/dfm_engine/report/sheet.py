"""One picture of a data set: every action by its peak, then a pair in the three qualities.

    python -m dfm_engine.report.sheet out/demo --real out/demo-clips/real \
        --driving out/demo-clips/driving -o docs/demo.png

In: a built data set and the folders it was made from. Out: a PNG of a few hundred kilobytes. The
first animation of each action is shown whatever the screen said of it, of another source than the
actions before where there is one.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dfm_engine.clip import QUALITIES
from dfm_engine.columns import Row
from dfm_engine.durable import write_durably
from dfm_engine.errors import UsageError
from dfm_engine.manifest import read_manifest
from dfm_engine.report.data import Example
from dfm_engine.report.examples import examples_from_manifest
from dfm_engine.report.pictures import load_strip

__all__ = ["draw_sheet", "peak_frame"]

TILE_PX = 92
ZOOM_PX = 154
ZOOM = (0.24, 0.3, 0.76, 0.82)  # eyes to mouth of a framed face: left, top, right, bottom
MARGIN_PX, LINE_PX, GAP_PX = 46, 17, 2
WHOLE_CLIP = 10_000  # more frames than any clip of a demo has
INK, PAPER = (40, 40, 40), (255, 255, 255)

Picture = NDArray[np.uint8]


def draw_sheet(out: Path, *, real_root: Path, driving_root: Path) -> bytes:
    """The sheet of a data set as PNG.

    Args:
        out: a built data set.
        real_root: the folder of real clips it was made from.
        driving_root: the folder of driving clips.

    Raises:
        UsageError: it holds no animation.
    """
    rows = read_manifest(out / "manifest.parquet")
    examples = _one_per_action(
        examples_from_manifest(
            out,
            rows,
            real_root=real_root,
            driving_root=driving_root,
            per_action=3,
            refused_per_action=0,
            frames=WHOLE_CLIP,
        )
    )
    if not examples:
        raise UsageError(f"{out} holds no animation that could be shown")
    columns = [_column(example) for example in examples]
    width = MARGIN_PX + len(columns) * (TILE_PX + GAP_PX)
    below = LINE_PX + 3 * (TILE_PX + GAP_PX) + 6
    sheet = Image.new("RGB", (width, below + LINE_PX + ZOOM_PX), PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    for line, name in enumerate(("source", "driving", "fake")):
        middle = LINE_PX + line * (TILE_PX + GAP_PX) + TILE_PX // 2
        draw.text((MARGIN_PX - 5, middle), name, INK, font, anchor="rm")
    for place, (example, pictures) in enumerate(zip(examples, columns, strict=True)):
        left = MARGIN_PX + place * (TILE_PX + GAP_PX)
        name = example.action.value.replace("_", " ")
        draw.text((left + TILE_PX // 2, LINE_PX // 2), name, INK, font, anchor="mm")
        for line, picture in enumerate(pictures):
            if picture is not None:
                _paste(sheet, picture, left, LINE_PX + line * (TILE_PX + GAP_PX), TILE_PX)
    _paste_qualities(sheet, out, rows, examples, below, font)
    return _png(sheet)


def peak_frame(frames: Sequence[Picture]) -> int:
    """The frame that differs most from both ends of its clip, pixel by pixel.

    From both, because a head that has drifted a little by the end outweighs two shut eyes.
    """
    first, last = (frames[end].astype(np.float32) for end in (0, -1))
    changes = [np.minimum(np.abs(frame - first), np.abs(frame - last)) for frame in frames]
    return int(np.argmax([np.square(change).mean() for change in changes]))


def _one_per_action(examples: Sequence[Example]) -> list[Example]:
    """The first of each action, of a source not shown yet where there is one."""
    chosen: dict[str, Example] = {}
    shown: set[bytes] = set()
    for action in dict.fromkeys(example.action for example in examples):
        several = [example for example in examples if example.action is action]
        fresh = [example for example in several if _face(example) not in shown]
        chosen[action.value] = (fresh or several)[0]
        shown.add(_face(chosen[action.value]))
    return list(chosen.values())


def _face(example: Example) -> bytes:
    return b"" if example.source is None else example.source.tobytes()


def _column(example: Example) -> tuple[Picture | None, Picture | None, Picture | None]:
    """Source, driving and fake, the last two where the driving clip is at its peak."""
    driving = load_strip(example.driving, count=WHOLE_CLIP)
    fake = load_strip(example.result, expected=example.frames, count=WHOLE_CLIP)
    if not driving or not fake:
        return example.source, None, fake[len(fake) // 2] if fake else None
    peak = min(peak_frame(driving), len(fake) - 1)
    return example.source, driving[peak], fake[peak]


def _paste_qualities(
    sheet: Image.Image,
    out: Path,
    rows: Sequence[Row],
    examples: Sequence[Example],
    top: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """A real clip and its fake, the face alone, in each quality."""
    from dfm_engine.media.decode import read_frames

    draw = ImageDraw.Draw(sheet)
    files = {(row["clip_id"], row["quality"]): out / row["path"] for row in rows if row["path"]}
    twins = {row["clip_id"]: row["pair_clip_id"] for row in rows if row["label"] == "fake"}
    pairs = [(twins[example.name], example.name) for example in examples if twins[example.name]]
    if not pairs:
        return
    left = MARGIN_PX
    step = (sheet.width - MARGIN_PX - ZOOM_PX) // 5
    for label, clip in zip(("real", "fake"), pairs[0], strict=True):
        for quality in QUALITIES:
            path = files.get((clip, quality))
            if path is not None:
                frames = list(read_frames(path))
                _paste(sheet, _zoomed(frames[len(frames) // 2]), left, top + LINE_PX, ZOOM_PX)
                middle = (left + ZOOM_PX // 2, top + LINE_PX // 2)
                draw.text(middle, f"{label}, {quality}", INK, font, anchor="mm")
            left += step


def _zoomed(frame: Picture) -> Picture:
    height, width = frame.shape[:2]
    left, top, right, bottom = ZOOM
    return frame[
        round(top * height) : round(bottom * height), round(left * width) : round(right * width)
    ]


def _paste(sheet: Image.Image, picture: Picture, left: int, top: int, side: int) -> None:
    small = Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS)
    sheet.paste(small, (left, top))


def _png(sheet: Image.Image) -> bytes:
    """Colours in steps of five, not to be seen on a screen: half the size of all of them."""
    colours = np.round(np.asarray(sheet) / 5.0) * 5
    buffer = io.BytesIO()
    Image.fromarray(colours.astype(np.uint8)).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the command line and write the picture."""
    parser = argparse.ArgumentParser(prog="python -m dfm_engine.report.sheet")
    parser.add_argument("out", type=Path, help="a built data set")
    parser.add_argument("--real", type=Path, required=True, help="its folder of real clips")
    parser.add_argument("--driving", type=Path, required=True, help="its folder of driving clips")
    parser.add_argument("-o", dest="picture", type=Path, required=True, help="the PNG to write")
    given = parser.parse_args(arguments)
    write_durably(
        given.picture, draw_sheet(given.out, real_root=given.real, driving_root=given.driving)
    )


if __name__ == "__main__":
    main()
