"""Benchmarks: every number that the README states comes from here.

`measure.py` times, `facts.py` says on what, `report.py` writes it down; `stages.py` takes a build
apart against the ceilings of `ceilings.py`.
"""
