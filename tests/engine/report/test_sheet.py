"""The picture of a data set: what is on it, and where."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from dfmtest_dataset import make_dataset
from PIL import Image

from dfm_engine.errors import UsageError
from dfm_engine.manifest import read_manifest, write_manifest
from dfm_engine.report import sheet
from dfm_engine.report.sheet import peak_frame


def test_the_peak_is_where_a_clip_differs_from_both_its_ends() -> None:
    frames = np.full((6, 8, 8, 3), 100, np.uint8)
    for index in range(6):
        frames[index, :4] += 10 * index  # drifts all the way
    frames[2, 6, :4] = 0  # a blink
    assert peak_frame(list(frames)) == 2


def test_the_sheet_shows_each_action_once_and_every_quality(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    make_dataset(out)
    shown: list[tuple[int, int, int]] = []
    paste = sheet._paste

    def record(page: Image.Image, picture: np.ndarray, left: int, top: int, side: int) -> None:
        shown.append((left, top, side))
        paste(page, picture, left, top, side)

    monkeypatch.setattr(sheet, "_paste", record)
    target = tmp_path / "pictures/demo.png"
    gone = str(tmp_path / "gone")
    sheet.main([str(out), "--real", gone, "--driving", gone, "-o", str(target)])
    actions = {row["action"] for row in read_manifest(out / "manifest.parquet")} - {None}
    tiles = [side for _, _, side in shown]
    assert tiles.count(sheet.TILE_PX) <= len(actions)  # inputs are gone: the fakes alone
    assert tiles.count(sheet.ZOOM_PX) == 6
    assert len(set(shown)) == len(shown)  # none over another
    with Image.open(target) as picture:
        assert max(left + side for left, _, side in shown) <= picture.width
        assert max(top + side for _, top, side in shown) <= picture.height


def test_a_sheet_of_nothing_is_refused(tmp_path: Path) -> None:
    write_manifest([], tmp_path / "manifest.parquet")
    with pytest.raises(UsageError, match="no animation"):
        sheet.draw_sheet(tmp_path, real_root=tmp_path, driving_root=tmp_path)
