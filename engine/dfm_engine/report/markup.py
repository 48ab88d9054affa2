"""HTML elements as functions; text is escaped unless it is `Markup` already."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

_VOID = frozenset({"img", "meta", "br", "col"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Child = str | int | float | None


def escape(value: Child) -> Markup:
    """Any text as HTML: control characters and bytes that were not UTF-8 are spelt out."""
    if isinstance(value, Markup):
        return value
    text = "" if value is None else str(value)
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    if not text.isprintable():  # one look at the whole: a picture's URI has 10,000 characters
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return Markup(html.escape(text))


def percent(share: float) -> str:
    """`48 %`."""
    return f"{100 * share:.0f} %"


def element(name: str, /, *children: Child, **attributes: Child | bool) -> Markup:
    """`element("p", "a < b", class_="note")`; an attribute that is None or False is left out.

    A trailing underscore of an attribute's name goes away, others become hyphens.
    """
    written = ""
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        attribute = key.rstrip("_").replace("_", "-")
        written += f" {attribute}" if value is True else f' {attribute}="{escape(value)}"'
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Iterable[Child]) -> Markup:
    """Children one after the other."""
    return Markup("".join(map(escape, children)))


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[Child]],
    *,
    caption: str,
    numeric_from: int | None = 1,
    footer: Sequence[Child] | None = None,
) -> Markup:
    """A table whose first column heads the rows; columns from `numeric_from` on are numbers."""

    def cell(index: int, value: Child) -> Markup:
        number = numeric_from is not None and index >= numeric_from
        css = "number" if number else None
        if index == 0:
            return element("th", value, scope="row")
        return element("td", value, class_=css)

    def line(row: Sequence[Child]) -> Markup:
        return element("tr", *(cell(index, value) for index, value in enumerate(row)))

    heads = [
        element(
            "th",
            name,
            scope="col",
            class_="number" if numeric_from is not None and index >= numeric_from else None,
        )
        for index, name in enumerate(header)
    ]
    body = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *heads)),
        element("tbody", *map(line, rows)),
        element("tfoot", line(footer)) if footer else None,
    )
    return element("div", body, class_="scroll", tabindex=0, role="region", aria_label=caption)
