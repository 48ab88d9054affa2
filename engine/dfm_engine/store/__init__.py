"""Decode once, train many times: clips to a store of uint8 frames, and the store to batches.

    data ─► list ─► look (probe, face box) ─► sample N frames ─► shards ─► index, meta.json

`fill.py` is the run (read it first), `pyav.py` the sampler of a CPU, `meta.py`, `index.py` and
`frames.py` the store that is left.
"""
