"""Read a CSV about clips, and say where in it something is wrong.

Paths in a table are relative to the table's own folder and must stay inside the root folder;
an absolute path is taken where it lies inside.
"""

from __future__ import annotations

import csv
import difflib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dfm_engine.errors import UsageError
from dfm_engine.readers.files import clean_text

_TRUE, _FALSE = {"true", "yes", "1"}, {"", "false", "no", "0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TableRow:
    """One row of a table, with the line it stands on (the header is line 1)."""

    table: Path
    line: int
    cells: dict[str, str]

    def error(self, column: str, problem: str) -> UsageError:
        """The error that points at a cell of this row."""
        return UsageError(f"{str(self.table)!r}, line {self.line}, column {column}: {problem}")

    def text(self, column: str) -> str:
        """A cell as text, blank where it or the column is absent."""
        return clean_text(self.cells.get(column, ""))

    def boolean(self, column: str) -> bool:
        """A cell as a truth value; blank is false."""
        word = self.text(column).lower()
        if word not in _TRUE | _FALSE:
            raise self.error(column, f"must be true or false, found {word!r}")
        return word in _TRUE

    def seconds(self, column: str) -> float | None:
        """A cell as seconds from the first frame, None where blank."""
        word = self.text(column)
        if not word:
            return None
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= 0):
            raise self.error(column, f"must be seconds from the first frame, found {word!r}")
        return value

    def path(self, column: str, *, root: Path) -> Path:
        """A cell as an absolute path inside `root`; whether it exists is not asked.

        Symlinks are kept as written: a link inside the root may lead out of it, `..` may not.

        Raises:
            UsageError: blank, holds a NUL, or leaves the root.
        """
        text = self.cells.get(column, "")
        if not text.strip() or "\0" in text:
            raise self.error(column, f"must name a file, found {text!r}")
        top = os.path.abspath(root)
        for folder in (os.path.abspath(self.table.parent), top):
            path = os.path.normpath(os.path.join(folder, text))
            for inside in (top, os.path.realpath(top)):
                if path.startswith(inside.rstrip(os.sep) + os.sep):
                    return Path(path)
        raise self.error(column, f"{text!r} leads out of {top!r}; name a file inside it")


def read_table(
    table: Path, *, required: Sequence[str], optional: Sequence[str] | None = ()
) -> Iterator[TableRow]:
    """Read a comma-separated table with a header line, UTF-8.

    Args:
        table: the file.
        required: columns that must be there.
        optional: further columns allowed; None allows any.

    Raises:
        UsageError: unreadable, no rows, a required column is absent, an unknown column or a row
            of another width.
    """
    try:
        with table.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as stream:
            reader = csv.reader(stream, strict=True)
            header = [cell.strip() for cell in next(reader, [])]
            _check_header(table, header, required, optional)
            count = 0
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(header):
                    raise UsageError(
                        f"{str(table)!r}, line {reader.line_num}: {len(cells)} cells under "
                        f"{len(header)} columns; quote a cell that holds a comma"
                    )
                count += 1
                yield TableRow(
                    table=table, line=reader.line_num, cells=dict(zip(header, cells, strict=True))
                )
    except OSError as error:
        raise UsageError(f"reading {str(table)!r}: {error.strerror}") from error
    except csv.Error as error:
        raise UsageError(
            f"reading {str(table)!r}: not a comma-separated table ({error})"
        ) from error
    if not count:
        raise UsageError(f"reading {str(table)!r}: no rows under the header")


def _check_header(
    table: Path, header: list[str], required: Sequence[str], optional: Sequence[str] | None
) -> None:
    where = f"{str(table)!r}, line 1"
    allowed = [*required, *(optional or ())]
    for name in header:
        if header.count(name) > 1:
            raise UsageError(f"{where}: column {name!r} stands there twice")
        if optional is not None and name not in allowed:
            near = difflib.get_close_matches(name, allowed, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(allowed)}"
            raise UsageError(f"{where}: unknown column {name!r}; {hint}")
    for name in required:
        if name not in header:
            raise UsageError(
                f"{where}: column {name!r} is absent; found {', '.join(header) or 'nothing'}"
            )
