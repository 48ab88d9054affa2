"""Exported folders: whole or absent, read back equal, refused when they were changed."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from dfm_engine.errors import InputError, UsageError
from dfm_export.artifact import (
    Artifact,
    ExportedGraph,
    open_artifact,
    sha256_of,
    write_artifact,
)
from dfm_export.specs import GraphSpec, TensorSpec

SPEC = GraphSpec(
    "animate",
    (TensorSpec("encoded", "float32", ("sources", 4, 8, 8)),),
    (TensorSpec("frame", "float16", ("batch", 3, 8, 8)),),
)


@pytest.fixture
def written(tmp_path: Path) -> Artifact:
    file = tmp_path / "animate.onnx"
    file.write_bytes(b"not really a graph")
    graph = ExportedGraph(
        spec=SPEC,
        path=file,
        sha256=sha256_of(file),
        size_bytes=file.stat().st_size,
        census={"float32": 3},
        grid_samples=2,
        parity={"max_abs": 1e-6},
        seconds=0.5,
    )
    artifact = Artifact(
        path=tmp_path,
        kind="fomm",
        graphs={"animate": graph},
        precision="fp32",
        weights_sha256="ab" * 32,
        opset=18,
        align_corners=True,
        model={"frame_size": [8, 8]},
        options={"subpixel": False},
        gates={"animate": {"psnr_db": 60.0}},
        versions={"torch": "2"},
    )
    write_artifact(artifact)
    return artifact


def test_an_export_reads_back_equal(written: Artifact) -> None:
    assert open_artifact(written.path) == written
    assert open_artifact(written.path / "export.json") == written


def test_a_spec_gives_the_shapes_of_a_call() -> None:
    assert SPEC.inputs[0].at(batch=5) == (5, 4, 8, 8)
    assert SPEC.inputs[0].at(batch=5, sources=1) == (1, 4, 8, 8)
    assert SPEC.outputs[0].at(batch=5, sources=1) == (5, 3, 8, 8)
    assert SPEC.has_sources


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.write_bytes(b"NOT really a graph"), "is not the file that was exported"),
        (lambda file: file.write_bytes(b"not really"), "10 bytes of 18"),
        (lambda file: file.unlink(), "cannot be read"),
    ],
)
def test_a_changed_or_absent_graph_is_refused(written: Artifact, change, message: str) -> None:
    change(written.graphs["animate"].path)
    with pytest.raises(InputError, match=message):
        open_artifact(written.path)


def test_a_folder_without_its_last_file_is_no_export(written: Artifact) -> None:
    (written.path / "export.json").unlink()
    with pytest.raises(InputError, match="was not finished"):
        open_artifact(written.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "is of format 99"),
        ({"graphs": [{"file": "../animate.onnx"}]}, "lacks or spoils a field"),
        ({"model": None, "graphs": None}, "lacks or spoils a field"),
    ],
)
def test_a_spoiled_description_is_refused(written: Artifact, change: dict, message: str) -> None:
    file = written.path / "export.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(InputError, match=message):
        open_artifact(written.path)


def test_a_graph_file_may_not_lie_elsewhere(written: Artifact) -> None:
    file = written.path / "export.json"
    table = json.loads(file.read_text())
    table["graphs"][0]["file"] = "../animate.onnx"
    file.write_text(json.dumps(table))
    with pytest.raises(InputError, match="not a plain file name"):
        open_artifact(written.path)


def test_an_unknown_graph_is_named_with_those_there_are(written: Artifact) -> None:
    with pytest.raises(InputError, match=r"no graph 'render', it has \['animate'\]"):
        written.graph("render")


def test_a_spec_refuses_what_no_graph_has() -> None:
    with pytest.raises(UsageError, match="dtype must be one of"):
        TensorSpec("x", "float64", ("batch",))  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="dimension 1"):
        TensorSpec("x", "float32", ("batch", "height"))
    with pytest.raises(UsageError, match="first dimension"):
        dataclasses.replace(SPEC, inputs=(TensorSpec("x", "float32", (3, "batch")),))
