"""Write golden_nvdec.mp4 and .npz: the start of a clip and what NVDEC shows of it, uncorrected.

Run it on a machine with NVDEC and DALI, with a clip of the renderer, c23, 256x256, to be cut short:
`python tests/engine/store/make_golden_nvdec.py clip.mp4`. Those in the tree: H100, driver 580, DALI
2.4.0.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

CLIP = Path(__file__).with_name("golden_nvdec.mp4")
PICTURES = CLIP.with_suffix(".npz")
PACKETS, FRAMES = 4, 3
STEP_PX = 5  # odd: pixels of all four places between the samples of chroma


def cut(source: Path) -> None:
    """Keep the first packets, which hold the pictures that are shown first."""
    with av.open(str(source)) as given, av.open(str(CLIP), "w") as kept:
        stream = given.streams.video[0]
        copy = kept.add_stream_from_template(stream)
        for _, packet in zip(range(PACKETS), given.demux(stream), strict=False):
            packet.stream = copy
            kept.mux(packet)


def decode() -> NDArray[np.uint8]:
    """(3, 256, 256, 3) by NVDEC, with nothing after it."""
    from dfm_engine.store.dali_graph import load_dali

    dali: Any = load_dali()
    fn = dali.fn
    pipeline = dali.Pipeline(batch_size=1, num_threads=2, device_id=0)
    with pipeline:
        file = fn.external_source(name="bytes", dtype=dali.types.UINT8, ndim=1)
        pipeline.set_outputs(fn.decoders.video(file, device="mixed", frames=list(range(FRAMES))))
    pipeline.build()
    pipeline.feed_input("bytes", [np.fromfile(CLIP, np.uint8)])
    (output,) = pipeline.run()
    return np.array(output.as_cpu()[0])


def save(pictures: NDArray[np.uint8]) -> None:
    """Keep every fifth pixel of every fifth row."""
    np.savez_compressed(PICTURES, rgb=pictures[:, ::STEP_PX, ::STEP_PX])


if __name__ == "__main__":
    cut(Path(sys.argv[1]))
    save(decode())
