"""Read the tables of a Markdown page."""

from __future__ import annotations

from pathlib import Path


def read_tables(page: Path) -> dict[tuple[str, ...], list[dict[str, str]]]:
    """Rows of every table, as {column: cell}, by the tuple of its columns."""
    tables: dict[tuple[str, ...], list[dict[str, str]]] = {}
    columns: tuple[str, ...] | None = None
    for line in page.read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            columns = None
            continue
        cells = tuple(cell.strip() for cell in line.strip().strip("|").split("|"))
        if columns is None:
            columns = cells
            tables[columns] = []
        elif set(line) - set("|- "):
            tables[columns].append(dict(zip(columns, cells, strict=True)))
    return tables
