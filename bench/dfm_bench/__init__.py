"""Benchmarks: every number that the README states comes from here."""
