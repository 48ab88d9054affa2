"""Decode once, train many times: clips to a store of uint8 frames, and the store to batches.

    data ─► list ─► look (probe, face box) ─► sample N frames ─► shards ─► index, meta.json

`fill.py` is the run (read it first), `filler.py` its shards, `sampler.py` what it asks of a
decoder, `pyav.py` the one for processors; `meta.py`, `index.py` and `frames.py` are the store that
is left.

    store ─► loader (device, host, memmap, stream) ─► gather ─► fused augment ─► Batch

`batches.py` is what a training asks (read it first), `order.py` what all randomness comes from,
`draws.py` and `augment.py` what happens to a batch.

    STORE/
      meta.json           how to read the rest; written last, so a store that has it is whole
      prepare.json        what was asked for; a folder is filled with one set of options
      clips.parquet       one row per clip
      index.parquet       one row per frame: its clip, its number in the file
      quarantine.parquet  clips that gave no frames, and why
      shards/00000.u8     frames, nothing between them; 00000.json says what is in it
      looks/              what was found of each clip of a plain folder (probe, face box)
      sheet.png           some of it as one picture
"""
