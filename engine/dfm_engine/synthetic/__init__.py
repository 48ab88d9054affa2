"""Procedural faces: seeded clips with no real person behind them, and their ground truth."""
