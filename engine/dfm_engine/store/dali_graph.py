"""The one DALI graph: pictures of many clips, each cut to its box, resized and colour-corrected.

    encoded bytes ─► decoders.video(frames) ─┐
                                             ├─► resize(box, antialias) ─► 3x4 colour ─► uint8 FHWC
    decoded pictures ────────────────────────┘                                       └─► float FCHW

Only the source differs: `nvdec` decodes encoded bytes on the GPU, `frames` takes pictures that PyAV
decoded. `software` is `nvdec` with DALI's own CPU decoder in its place, which knows VP8, VP9 and
MJPEG but no H.264; it serves the tests. What follows is the same code on CPU and GPU, so running
`frames` and `software` on a CPU tests the crop, the colour and the plumbing of the GPU's graph.

The crop is the project's (`dfm_kernels.crop`): float box, triangle filter as wide as the scale,
taps outside the box, the picture's border clamped. Colour is corrected after it, in float: one
rounding in all. `decoders.video` is the only operator of DALI that decodes samples of a batch side
by side and so keeps more than one of the GPU's decoders busy.

Without CUDA a graph with device parts can be written out (`serialize`) but not built.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

from dfm_engine.errors import EnvironmentUnfit, UsageError

__all__ = ["INPUTS", "GraphSpec", "Source", "build_graph", "define_graph", "load_dali"]

Source = Literal["nvdec", "frames", "software"]

INPUTS: dict[Source, tuple[str, ...]] = {
    "nvdec": ("bytes", "wanted", "box", "size", "colour"),
    "software": ("bytes", "wanted", "box", "size", "colour"),
    "frames": ("frames", "box", "size", "colour"),
}
"""What is fed, per clip: `bytes` uint8 (N,), a whole file; `wanted` int32 (F,), numbers of its
pictures in order of showing; `frames` uint8 (F, H, W, 3); `box` float32 x0 y0 x1 y1 in pixel edges
of the stored picture; `size` float32 (h, w) of the result; `colour` float32 (3, 4) on
(R, G, B, 1), the decoder's bias included (`dali_trial.affine_colour`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSpec:
    """One graph.

    Attributes:
        source: where pictures come from.
        batch_size: clips, or parts of clips, at most in one run.
        threads: of DALI's pool: each decodes one clip, so twice the GPU's decoders or more.
        device_id: the CUDA device that crops, or None for the CPU.
        depth: runs under way at once.
        has_index: the decoder reads all of a file's packets first, and seeks by them.
        mean, std: normalise to float FCHW, in levels of 0-255; None gives uint8 FHWC.
    """

    source: Source
    batch_size: int = 16
    threads: int = 16
    device_id: int | None = None
    depth: int = 2
    has_index: bool = True
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.threads < 1 or self.depth < 1:
            raise UsageError(
                f"a DALI graph needs at least one clip, thread and run, got {self.batch_size}, "
                f"{self.threads} and {self.depth}"
            )
        if (self.mean is None) != (self.std is None):
            raise UsageError("a DALI graph normalises by mean and std, or by neither")
        if self.source == "software" and self.device_id is not None:
            raise UsageError("source 'software' is DALI's CPU decoder; it has no device")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of what is fed."""
        return INPUTS[self.source]


def load_dali() -> ModuleType:
    """Import DALI.

    Raises:
        EnvironmentUnfit: it is absent, or does not load.
    """
    try:
        import nvidia.dali as dali
        import nvidia.dali.fn  # both are attributes of `dali` from here on
        import nvidia.dali.types  # noqa: F401
    except (ImportError, OSError) as error:
        raise EnvironmentUnfit(
            f"DALI does not load ({error}); pip install 'dfm-engine[gpu]', or use --decode pyav"
        ) from error
    return dali


def define_graph(spec: GraphSpec) -> Any:
    """The pipeline, defined and not yet built: arguments and types of operators are checked.

    Without CUDA, a `nvdec` graph must be given no `device_id`; it then serialises, with all that
    follows the decoder on the GPU, and fails to build.

    Returns:
        `nvidia.dali.Pipeline`.

    Raises:
        EnvironmentUnfit: there is no DALI.
    """
    dali = load_dali()
    pipeline = dali.Pipeline(
        batch_size=spec.batch_size,
        num_threads=spec.threads,
        device_id=spec.device_id,
        prefetch_queue_depth=spec.depth,
        set_affinity=False,  # encoders and probes share these cores
    )
    with pipeline:
        pipeline.set_outputs(_crops(dali, spec))
    return pipeline


def build_graph(spec: GraphSpec) -> Any:
    """The pipeline, ready to be fed.

    Raises:
        EnvironmentUnfit: there is no DALI, or no CUDA where the graph needs it.
    """
    pipeline = define_graph(spec)
    try:
        pipeline.build()
    except RuntimeError as error:
        raise EnvironmentUnfit(
            f"DALI does not build its {spec.source} graph on device {spec.device_id} ({error}); "
            "`dfm-engine doctor` says what is missing, --decode pyav does without"
        ) from error
    return pipeline


def _crops(dali: Any, spec: GraphSpec) -> Any:
    """The graph itself."""
    fn, types = dali.fn, dali.types
    box = fn.external_source(name="box", dtype=types.FLOAT, ndim=1)
    size = fn.external_source(name="size", dtype=types.FLOAT, ndim=1)
    colour = fn.external_source(name="colour", dtype=types.FLOAT, ndim=2)
    if spec.source == "frames":
        pictures = fn.external_source(name="frames", dtype=types.UINT8, ndim=4, layout="FHWC")
        if spec.device_id is not None:
            pictures = pictures.gpu()
    else:
        pictures = fn.decoders.video(
            fn.external_source(name="bytes", dtype=types.UINT8, ndim=1),
            device="mixed" if spec.source == "nvdec" else "cpu",
            frames=fn.external_source(name="wanted", dtype=types.INT32, ndim=1),
            pad_mode="none",  # a number beyond the end is an error, never a repeated picture
            affine=False,
            build_index=spec.has_index,
        )
    crops = fn.resize(
        pictures,
        roi_start=fn.stack(box[1], box[0]),
        roi_end=fn.stack(box[3], box[2]),
        size=size,
        interp_type=types.INTERP_LINEAR,
        antialias=True,
        dtype=types.FLOAT,
    )
    crops = fn.coord_transform(crops, MT=colour)
    crops = fn.cast(crops, dtype=types.UINT8)  # rounds to nearest, clamps
    if spec.mean is None:
        return crops
    return fn.crop_mirror_normalize(
        crops,
        dtype=types.FLOAT,
        output_layout="FCHW",
        mean=list(spec.mean),
        std=list(spec.std or ()),
    )
