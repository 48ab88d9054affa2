"""An exported model on disk: a folder with one ONNX file per graph, and `export.json`.

    OUT/
      export.json        what this is: specs, precision, hashes, errors measured, versions
      keypoints.onnx     fomm: keypoints, source, animate (or motion and render)
      detector.onnx      detector: this one alone

`export.json` names every graph with its hash, is written last and in one step, and is removed
before a graph is replaced. So a folder that has one is whole, and one that has none is no export.
Reading it needs neither torch nor onnx.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dfm_engine.durable import write_durably
from dfm_engine.errors import InputError
from dfm_export.specs import GraphSpec

__all__ = ["Artifact", "ExportedGraph", "open_artifact", "sha256_of", "write_artifact"]

FILE_NAME = "export.json"
FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedGraph:
    """One ONNX file.

    Attributes:
        spec: its inputs and outputs.
        path: of the file.
        sha256: of the file.
        size_bytes: of the file.
        census: element type -> how many tensors of it the nodes of the graph make; see
            `onnx_checks.dtype_census`. Engines built from the file are held against it.
        grid_samples: how many GridSample nodes it has.
        parity: measured errors, by name; see `parity` and `precision`.
        seconds: the export took.
    """

    spec: GraphSpec
    path: Path
    sha256: str
    size_bytes: int
    census: Mapping[str, int] = field(default_factory=dict)
    grid_samples: int = 0
    parity: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """Of the graph."""
        return self.spec.name

    def to_json(self) -> dict[str, Any]:
        """Its entry in `export.json`."""
        return {
            **self.spec.to_json(),
            "file": self.path.name,
            "sha256": self.sha256,
            "size_bytes": self.size_bytes,
            "census": dict(self.census),
            "grid_samples": self.grid_samples,
            "parity": dict(self.parity),
            "seconds": round(self.seconds, 2),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """An exported model.

    Attributes:
        path: the folder.
        kind: which model.
        graphs: by name.
        precision: the plan, see `precision`.
        weights_sha256: identifies the weights.
        opset: of all graphs.
        align_corners: of every GridSample; None where there is none.
        model: fomm: `config` in the YAML's structure and `frame_size` (height, width);
            detector: its `spec`.
        options: how the graphs were rewritten, such as `subpixel`.
        gates: the plan's limits and what was measured.
        versions: of what wrote the files.
    """

    path: Path
    kind: Literal["fomm", "detector"]
    graphs: Mapping[str, ExportedGraph]
    precision: str
    weights_sha256: str
    opset: int
    align_corners: bool | None
    model: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    gates: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def graph(self, name: str) -> ExportedGraph:
        """One of the graphs.

        Raises:
            InputError: there is none of that name.
        """
        if name not in self.graphs:
            raise InputError(
                f"export {os.fspath(self.path)!r}: has no graph {name!r}, it has "
                f"{sorted(self.graphs)}"
            )
        return self.graphs[name]

    def to_json(self) -> dict[str, Any]:
        """The content of `export.json`."""
        return {
            "format": FORMAT_VERSION,
            "kind": self.kind,
            "precision": self.precision,
            "weights_sha256": self.weights_sha256,
            "opset": self.opset,
            "align_corners": self.align_corners,
            "model": dict(self.model),
            "options": dict(self.options),
            "gates": dict(self.gates),
            "versions": dict(self.versions),
            "graphs": [graph.to_json() for graph in self.graphs.values()],
        }


def write_artifact(artifact: Artifact) -> Path:
    """Write `export.json` beside the graphs, which makes the folder an export; returns its path."""
    text = json.dumps(artifact.to_json(), indent=2, sort_keys=False, allow_nan=False)
    target = artifact.path / FILE_NAME
    write_durably(target, text.encode() + b"\n")
    return target


def open_artifact(path: str | os.PathLike[str], *, check_hashes: bool = True) -> Artifact:
    """Read an export.

    Args:
        path: the folder, or its `export.json`.
        check_hashes: read every graph and compare; 0.1 s for the three of vox-256.

    Raises:
        InputError: no export, of another format version, or a graph is absent or was changed.
    """
    folder = Path(path)
    folder = folder.parent if folder.name == FILE_NAME else folder
    what = f"export {os.fspath(folder)!r}"
    try:
        table = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{what}: has no {FILE_NAME}, so it is none or was not finished; "
            "`dfm-engine export` makes one"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{what}: {FILE_NAME} cannot be read ({error}); export again") from error
    if not isinstance(table, dict) or table.get("format") != FORMAT_VERSION:
        found = table.get("format") if isinstance(table, dict) else type(table).__name__
        raise InputError(
            f"{what}: {FILE_NAME} is of format {found!r}, this version reads {FORMAT_VERSION}; "
            "export again"
        )
    try:
        graphs = [_read_graph(folder, entry) for entry in table["graphs"]]
        artifact = Artifact(
            path=folder,
            kind=table["kind"],
            graphs={graph.name: graph for graph in graphs},
            precision=table["precision"],
            weights_sha256=table["weights_sha256"],
            opset=table["opset"],
            align_corners=table["align_corners"],
            model=table["model"],
            options=table["options"],
            gates=table["gates"],
            versions=table["versions"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{what}: {FILE_NAME} lacks or spoils a field ({type(error).__name__}: {error}); "
            "export again"
        ) from error
    for graph in graphs:
        _check_file(graph, what, check_hashes)
    return artifact


def sha256_of(path: Path) -> str:
    """Of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_graph(folder: Path, entry: Mapping[str, Any]) -> ExportedGraph:
    name = Path(entry["file"])
    if name.name != entry["file"]:
        raise ValueError(f"graph file {entry['file']!r} is not a plain file name")
    return ExportedGraph(
        spec=GraphSpec.from_json(entry),
        path=folder / name,
        sha256=entry["sha256"],
        size_bytes=entry["size_bytes"],
        census=entry["census"],
        grid_samples=entry["grid_samples"],
        parity=entry["parity"],
        seconds=entry["seconds"],
    )


def _check_file(graph: ExportedGraph, what: str, check_hashes: bool) -> None:
    try:
        size = graph.path.stat().st_size
        digest = sha256_of(graph.path) if check_hashes and size == graph.size_bytes else ""
    except OSError as error:
        raise InputError(
            f"{what}: {graph.path.name} cannot be read ({error.strerror}); export again"
        ) from error
    if size != graph.size_bytes or (check_hashes and digest != graph.sha256):
        raise InputError(
            f"{what}: {graph.path.name} is not the file that was exported ({size} bytes of "
            f"{graph.size_bytes}, sha256 {digest[:12] or 'not read'} of {graph.sha256[:12]}); "
            "export again"
        )
