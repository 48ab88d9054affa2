"""The manifest: what it holds, that it survives the disk, and that its documentation is true."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from dfmtest_dataset import SPLITS, columns, make_dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from dfm_engine.columns import Column, path_of_text, read_table, text_of_path, write_table
from dfm_engine.errors import DfmError, InputError
from dfm_engine.jobs import Marker
from dfm_engine.manifest import (
    COLUMNS,
    documentation,
    read_manifest,
    row_order,
    rows_from_markers,
    write_manifest,
)
from dfm_engine.media.encode import X264_OPTIONS

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "string": st.text(st.characters(exclude_categories=["Cs"])),
    "bool": st.booleans(),
    "int32": st.integers(-(2**31), 2**31 - 1),
    "int64": st.integers(-(2**63), 2**63 - 1),
    "float64": st.floats(allow_nan=False, allow_infinity=False),
}


def value_of(column: Column) -> st.SearchStrategy[Any]:
    values = VALUES[column.type]
    return st.none() | values if column.is_nullable else values


ROWS = st.lists(st.fixed_dictionaries({c.name: value_of(c) for c in COLUMNS}), max_size=4)


@settings(max_examples=40, deadline=None)  # each row has some 50 columns
@given(rows=ROWS)
def test_rows_survive_the_file(rows: list, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "survives.parquet"
    first = write_manifest(rows, path)
    assert path.read_bytes() == first
    found = read_manifest(path)
    assert found == sorted(rows, key=row_order)
    assert write_manifest(found, path) == first


def test_order_of_the_rows_given_does_not_matter(tmp_path: Path) -> None:
    rows = rows_from_markers(make_dataset(tmp_path).values())
    assert write_manifest(rows[::-1], tmp_path / "x") == write_manifest(rows, tmp_path / "x")


def test_a_data_set_has_one_row_per_file_and_one_per_clip_without(tmp_path: Path) -> None:
    made = make_dataset(tmp_path)
    rows = read_manifest(tmp_path / "manifest.parquet")
    assert len(rows) == 5 * 3 + 1 + 1
    assert [row["label"] for row in rows] == ["fake"] * 11 + ["real"] * 6
    by_clip = {
        name: [row for row in rows if row["clip_id"] == marker.clip_id]
        for name, marker in made.items()
    }
    assert [row["quality"] for row in by_clip["fake"]] == ["raw", "c23", "c40"]
    assert [row["quality"] for row in by_clip["refused"]] == ["raw"]
    assert [(row["quality"], row["path"]) for row in by_clip["dropped"]] == [(None, None)]
    for row in rows:
        assert row["split"] == SPLITS[row["identity"]]
        assert row["synthetic"] is (row["label"] == "fake")
        if row["path"]:
            assert row["size_bytes"] == (tmp_path / row["path"]).stat().st_size


def test_a_row_states_the_chain_and_the_measurements(tmp_path: Path) -> None:
    made = make_dataset(tmp_path)
    row = next(
        row
        for row in rows_from_markers([made["fake"]], extras={made["fake"].clip_id})
        if row["quality"] == "c40"
    )
    assert (row["crf"], row["preset"]) == (40, "medium")
    assert row["x264_options"] == X264_OPTIONS["c40"]
    assert json.loads(row["measurements"]) == {"blinks": 3}
    assert row["pair_clip_id"] == made["real"].clip_id
    assert (row["is_extra"], row["split"], row["take"]) == (True, None, None)
    assert (row["action"], row["screen_agreement"]) == ("smile", 0.875)


def test_a_value_that_does_not_fit_names_row_and_column(tmp_path: Path) -> None:
    marker = Marker(
        clip_id="0" * 16, label="fake", outcome="refused", files={}, columns=columns("fake")
    )
    (row,) = rows_from_markers([marker])
    for changes, message in [
        ({"frames": "three"}, "row 0 of m.parquet: column frames .*'three'"),
        ({"identity": None}, "column identity .* has no value"),
        ({"colour": "red"}, "no such column: colour"),
    ]:
        with pytest.raises(DfmError, match=message):
            write_manifest([row | changes], tmp_path / "m.parquet")
    assert not (tmp_path / "m.parquet").exists()


def test_a_damaged_or_foreign_manifest_is_an_input_error(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    with pytest.raises(InputError, match=r"m\.parquet"):
        read_manifest(path)
    data = write_manifest([], path)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"m\.parquet"):
        read_manifest(path)
    write_table(COLUMNS[1:], [], path, kind="manifest")
    with pytest.raises(InputError, match=r"other columns.*: path; run build-dataset again"):
        read_manifest(path)


def test_every_column_is_documented_in_the_schema(tmp_path: Path) -> None:
    write_manifest([], tmp_path / "m.parquet")
    schema = pq.read_schema(tmp_path / "m.parquet")
    assert schema.names == [c.name for c in COLUMNS]
    assert len(set(schema.names)) == len(COLUMNS)
    for found, c in zip(schema, COLUMNS, strict=True):
        assert found.metadata == {b"unit": c.unit.encode(), b"description": c.doc.encode()}
        assert len(c.doc) > 4
        assert found.nullable == c.is_nullable
    units = {"_s": "s", "_deg": "degrees", "_bytes": "bytes"}
    for c in COLUMNS:
        for ending, unit in units.items():
            assert not c.name.endswith(ending) or c.unit == unit


def test_the_page_is_the_one_that_the_columns_make(repo: Path) -> None:
    page = repo / "docs/manifest.md"
    assert page.read_text(encoding="utf-8") == documentation(), (
        "run: python -m dfm_engine.manifest > docs/manifest.md"
    )


@settings(deadline=None)
@given(name=st.binary(min_size=1).filter(lambda name: b"\0" not in name))
def test_any_file_name_becomes_text_and_comes_back(name: bytes) -> None:
    text = text_of_path(os.fsdecode(name))
    assert os.fsencode(path_of_text(text)) == name
    text.encode("utf-8")


def test_ordinary_names_stay_readable() -> None:
    assert text_of_path("id10001/ö 1.mp4") == "id10001/ö 1.mp4"
    assert text_of_path(os.fsdecode(b"a\xff\\b")) == r"a\xff\\b"


def test_a_table_keeps_the_order_it_is_given(tmp_path: Path) -> None:
    kind = (Column(name="x", type="int32", doc="a number"),)
    write_table(kind, [{"x": 2}, {"x": 1}], tmp_path / "t.parquet", kind="test")
    assert read_table(kind, tmp_path / "t.parquet") == [{"x": 2}, {"x": 1}]
