"""Tables on disk: typed columns that say what they hold, Parquet files of equal bytes.

A table is a tuple of `Column`s. `write_table` checks every value against them and writes no date,
so equal rows give equal bytes; name, unit and description travel in the Parquet schema and become
the documentation (`describe`).

A file name need not be text. `text_of_path` turns any name into text that a column can hold, and
`path_of_text` turns it back.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dfm_engine.durable import write_durably
from dfm_engine.errors import DfmError, InputError

Row = dict[str, Any]

_PYTHON: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "bool": (bool,),
    "int32": (int,),
    "int64": (int,),
    "float64": (float, int),
}
_BITS = {"int32": 32, "int64": 64}


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column: what it is called, holds, is measured in, and means."""

    name: str
    type: Literal["string", "bool", "int32", "int64", "float64"]
    doc: str
    unit: str = ""
    is_nullable: bool = False


def column(name: str, kind: Any, doc: str, *, unit: str = "", null: bool = False) -> Column:
    """Short for `Column(...)`, so that a table reads as one."""
    return Column(name=name, type=kind, doc=doc, unit=unit, is_nullable=null)


def check_row(columns: Sequence[Column], row: Mapping[str, Any], *, what: str) -> None:
    """Refuse a row that the table cannot hold.

    Raises:
        DfmError: an unknown name, a value missing or of another type, a number that is not
            finite or too large, text that is not UTF-8.
    """
    unknown = sorted(set(row) - {c.name for c in columns})
    if unknown:
        raise DfmError(f"{what}: no such column: {', '.join(unknown)}")
    for c in columns:
        problem = _problem(c, row.get(c.name))
        if problem:
            raise DfmError(f"{what}: column {c.name} ({c.type}) {problem}")


def write_table(
    columns: Sequence[Column], rows: Iterable[Mapping[str, Any]], path: Path, *, kind: str
) -> bytes:
    """Write rows in the order given, atomically; returns the bytes written.

    Args:
        columns: of the table; a row may leave out nullable ones.
        rows: to write.
        path: of the Parquet file.
        kind: what the table is, a word in its schema.

    Raises:
        DfmError: a row does not fit (`check_row`).
        EnvironmentUnfit: the file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    kept = list(rows)
    for index, row in enumerate(kept):
        check_row(columns, row, what=f"row {index} of {path.name}")
    arrays = [pa.array([row.get(c.name) for row in kept], _arrow_type(c)) for c in columns]
    table = pa.Table.from_arrays(arrays, schema=_schema(columns, kind))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", version="2.6")
    data = buffer.getvalue()
    write_durably(path, data)
    return data


def read_table(columns: Sequence[Column], path: Path) -> list[Row]:
    """Read what `write_table` wrote.

    Raises:
        InputError: absent, damaged, or with other columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(path.read_bytes()))
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"reading {os.fspath(path)!r}: {error}") from error
    expected = {c.name: c.type for c in columns}
    found = {f.name: "float64" if f.type == pa.float64() else str(f.type) for f in table.schema}
    if found != expected:
        names = sorted(
            name for name in {*found, *expected} if found.get(name) != expected.get(name)
        )
        raise InputError(
            f"reading {os.fspath(path)!r}: other columns than this version writes: "
            f"{', '.join(names)}; run build-dataset again on the same --out, which rewrites it"
        )
    return table.select(list(expected)).to_pylist()


def describe(columns: Sequence[Column]) -> str:
    """The columns as a Markdown table."""
    lines = ["| column | type | unit | what it holds |", "| --- | --- | --- | --- |"]
    for c in columns:
        kind = c.type + (" or null" if c.is_nullable else "")
        lines.append(f"| `{c.name}` | {kind} | {c.unit or '–'} | {c.doc} |")
    return "\n".join(lines) + "\n"


def text_of_path(path: str | os.PathLike[str]) -> str:
    r"""A file name as text: bytes that are not UTF-8 become `\xNN`, a backslash becomes `\\`."""
    name = os.fspath(path).replace("\\", "\\\\")
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def path_of_text(text: str) -> str:
    """The file name behind `text_of_path`."""
    raw = re.sub(
        rb"\\(\\|x[0-9a-f]{2})",
        lambda found: b"\\" if found[1] == b"\\" else bytes([int(found[1][1:], 16)]),
        text.encode(),
    )
    return os.fsdecode(raw)


def _problem(c: Column, value: Any) -> str | None:
    if value is None:
        return None if c.is_nullable else "has no value"
    if not isinstance(value, _PYTHON[c.type]) or (isinstance(value, bool) and c.type != "bool"):
        return f"cannot hold {value!r}"
    if c.type in _BITS and not -(2 ** (_BITS[c.type] - 1)) <= value < 2 ** (_BITS[c.type] - 1):
        return f"cannot hold {value}"
    if c.type == "float64" and not math.isfinite(value):
        return f"cannot hold {value}, which is no number"
    if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
        return f"cannot hold {value!r}, which is not UTF-8; pass names through text_of_path"
    return None


def _arrow_type(c: Column) -> Any:
    import pyarrow as pa

    kinds = {
        "string": pa.string(),
        "bool": pa.bool_(),
        "int32": pa.int32(),
        "int64": pa.int64(),
        "float64": pa.float64(),
    }
    return kinds[c.type]


def _schema(columns: Sequence[Column], kind: str) -> Any:
    import pyarrow as pa

    fields = [
        pa.field(
            c.name,
            _arrow_type(c),
            nullable=c.is_nullable,
            metadata={"unit": c.unit, "description": c.doc},
        )
        for c in columns
    ]
    return pa.schema(fields, metadata={"dfm_table": kind})
