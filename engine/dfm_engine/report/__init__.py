"""What a build made, as one page of HTML that needs nothing else: `write_report`."""

from dfm_engine.report.data import Confusion, Example, ReportData, StageTiming
from dfm_engine.report.examples import examples_from_manifest
from dfm_engine.report.write import write_report

__all__ = [
    "Confusion",
    "Example",
    "ReportData",
    "StageTiming",
    "examples_from_manifest",
    "write_report",
]
