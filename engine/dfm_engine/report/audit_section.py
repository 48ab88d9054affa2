"""The page's section on shortcuts: what tells the classes apart without a face."""

from __future__ import annotations

from dfm_engine.audit.result import AuditReport, AuditRow
from dfm_engine.report.markup import Child, Markup, element, join, table

WHAT = (
    "Tiny classifiers that see no face: file size alone, the codec's statistics, facts of the "
    "container, the first picture as 8 × 8 squares, the outermost pixels. Where one does better "
    "than chance (0.5), a detector could do so too, for a reason that is not the forgery."
)
FLAGGED = (
    "A flag is a question: is it the chain, which has to be mended, or the forgery, which has not? "
    "For each of them, what tells most by itself, what that may mean, and what can be done:"
)


def shortcuts(audit: AuditReport) -> Markup:
    """Verdict, table and notes."""
    css = "pill bad" if audit.flagged else "pill good" if audit.rows else "pill muted"
    parts: list[Child] = [
        element("p", WHAT),
        element("p", element("span", audit.verdict(), class_=css)),
    ]
    if audit.flagged:
        parts.append(element("p", FLAGGED, class_="muted"))
        parts += [
            element("p", element("b", baseline), f". {meaning} ({'; '.join(telling)})")
            for baseline, telling, meaning in audit.explanations()
        ]
    if audit.rows:
        header = ["baseline", "quality", "fake", "real", "balanced accuracy", "AUC", ""]
        caption = f"Shortcuts on people not trained on; intervals for all rows at {audit.level:.0%}"
        parts.append(
            element("div", table(header, map(_line, audit.rows), caption=caption), class_="card")
        )
    parts += [element("p", note, class_="muted") for note in audit.notes]
    return join(parts)


def _line(row: AuditRow) -> list[Child]:
    flag = element("span", "above chance", class_="pill bad") if row.flagged else ""
    return [
        row.baseline,
        row.quality,
        f"{row.fakes:,}",
        f"{row.reals:,}",
        f"{row.balanced_accuracy:.2f} ({row.interval[0]:.2f}–{row.interval[1]:.2f})",
        f"{row.auc:.2f} ({row.auc_interval[0]:.2f}–{row.auc_interval[1]:.2f})",
        flag,
    ]
