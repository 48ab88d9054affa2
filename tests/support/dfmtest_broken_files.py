"""Make a set of broken, odd and plain media files, each with one thing wrong, from nothing.

`make_files(folder)` writes them all in about a second: pictures are drawn here, encoded by PyAV,
and damaged by changing bytes. docs/inputs.md says by name what is expected of each. What is wrong
says where a file is made:

    dfmtest_odd_codecs       nothing: codecs, colours, turns, sizes
    dfmtest_odd_containers   streams, edit lists, clocks
    dfmtest_bombs            headers that promise too much; raw streams without their parts
    dfmtest_damaged_files    cut, changed, no video, odd names
    dfmtest_odd_pictures     stills
"""

from __future__ import annotations

import os
from pathlib import Path

import dfmtest_bombs
import dfmtest_damaged_files
import dfmtest_odd_codecs
import dfmtest_odd_containers
import dfmtest_odd_pictures
from dfmtest_media_makers import Maker

MAKERS: dict[str, Maker] = {  # in this order: later files are made of earlier ones
    **dfmtest_odd_codecs.FILES,
    **dfmtest_odd_containers.FILES,
    **dfmtest_bombs.FILES,
    **dfmtest_damaged_files.FILES,
    **dfmtest_odd_pictures.FILES,
}


def make_files(folder: Path) -> None:
    """Write every file; later ones are made from `ok-moov-front.mp4` and its like."""
    folder.mkdir(parents=True, exist_ok=True)
    # As root SVT-AV1 makes the calling thread a real-time one, for good: its busy threads would
    # then starve every other thread of the tests, and of the processes that they start.
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        for name, maker in MAKERS.items():
            maker(folder / name)
    finally:
        os.sched_setscheduler(0, *before)
