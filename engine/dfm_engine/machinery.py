"""What a command runs with: the networks, loaded, and how much of the machine they may use."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dfm_engine import fomm
from dfm_engine.backends import Runner, TorchRunner, plan_batch_size
from dfm_engine.errors import EnvironmentUnfit, UsageError
from dfm_engine.faces.mtcnn import Mtcnn
from dfm_engine.faces.pictures import FrameReader, PyavReader
from dfm_engine.fomm.model import Fomm
from dfm_engine.fomm.transfer import preload
from dfm_engine.framing_workers import FramingWorkers, framer_of
from dfm_engine.lanes import Lanes, plan_framing, plan_lanes
from dfm_engine.machine import read_cores
from dfm_engine.prepare import Framer
from dfm_engine.recipe import BuildRecipe
from dfm_engine.screen import Detector
from dfm_engine.weights import demo_weights

__all__ = [
    "DECODERS",
    "Machinery",
    "OpenRunner",
    "load_fomm",
    "load_machinery",
    "open_reader",
    "pick_device",
    "weights_banner",
]

DECODERS = ("auto", "pyav", "dali")

MAX_PIPELINES = 3  # of DALI: each holds pictures and decoders of its own on the GPU

OpenRunner = Callable[[Fomm, str, int], Runner | None]
"""From a model, a device and the rows of a batch: the runner, or None for the one of torch."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machinery:
    """What a build is run with; see `build.build_dataset`."""

    runner: Runner
    detector: Detector
    framer: Framer
    batch_size: int
    threads: int
    workers: int
    lanes: Lanes = field(default_factory=Lanes)
    reader: FrameReader = field(default_factory=PyavReader)
    framing: FramingWorkers | None = None


def load_machinery(
    recipe: BuildRecipe,
    *,
    weights: str,
    config: Path | None,
    device: str,
    decode: str = "auto",
    open_runner: OpenRunner | None = None,
) -> Machinery:
    """Load the networks of a build and share out the cores.

    On a CPU all of them are torch's, and all but one have an encoder each: the generator keeps them
    busy, the encoders a few. With a GPU the encoders are what they are for; before them, processes
    that frame. What the stages beside both have, see `lanes.plan_lanes`.

    Args:
        recipe: of the build.
        weights: see `load_fomm`.
        config: likewise.
        device: auto, cpu or cuda.
        decode: see `open_reader`.
        open_runner: of other means than torch.
    """
    cores = max(1, int(read_cores()))
    torch.set_num_threads(cores)
    where = pick_device(device)
    lanes = plan_lanes(cores, where)
    reader = open_reader(decode, where, pipelines=min(MAX_PIPELINES, lanes.open))
    model = load_fomm(weights, config, align_corners=recipe.motion.align_corners)
    detector = Mtcnn.load(where)
    if recipe.motion.mode == "rel_adapt":
        preload()  # or the first job of all would wait for it, and every core with it
    batch_size = recipe.plan.batch_size or plan_batch_size(model.config, where)
    runner = open_runner(model, where, batch_size) if open_runner else None
    size, framing = model.frame_size[0], None
    if processes := plan_framing(cores, where):
        framing = FramingWorkers(recipe=recipe, size=size, count=processes)
        framer = framing.framer()  # whoever frames a clip, the outcome is the same
    else:
        framer = framer_of(recipe, detector, size=size, reader=reader)
    return Machinery(
        runner=TorchRunner(model, where) if runner is None else runner,
        detector=detector,
        framer=framer,
        framing=framing,
        reader=reader,
        batch_size=batch_size,
        threads=cores,
        workers=max(1, cores - 1),
        lanes=lanes,
    )


def load_fomm(weights: str, config: Path | None, *, align_corners: bool = True) -> Fomm:
    """A FOMM by path, or by the words `demo` (the shipped one) and `random` (seeded noise).

    Raises:
        WeightsError: absent, damaged, or of another architecture.
    """
    if weights == "random":
        return fomm.initialise(config, seed=0, align_corners=align_corners)
    if weights == "demo":
        return fomm.load(demo_weights(), align_corners=align_corners)
    return fomm.load(weights, config, align_corners=align_corners)


def weights_banner(weights: str) -> str:
    """What a report must say of these weights, if anything."""
    return {
        "random": "The animation model has random weights: every fake here is noise.",
        "demo": "Fakes by the small demonstration model, trained on procedural faces: "
        "they show how the engine works, not how good the method is.",
    }.get(weights, "")


def open_reader(decode: str, device: str, *, pipelines: int = 1) -> FrameReader:
    """What decodes the clips of a build.

    Args:
        decode: `pyav`; `dali`, which is NVDEC for what it takes and PyAV for the rest; or `auto`:
            `dali` where the networks run on a GPU that decodes, else `pyav`.
        device: `cpu` or `cuda`, where the networks run.
        pipelines: clips that NVDEC decodes at once, at most.

    Raises:
        UsageError: another word.
        EnvironmentUnfit: `dali`, and this machine does not decode with it.
    """
    if decode not in DECODERS:
        raise UsageError(f"--decode takes {', '.join(DECODERS)}, found {decode!r}")
    if decode == "pyav" or (decode == "auto" and device == "cpu"):
        return PyavReader()
    from dfm_engine.store.dali_reader import DaliReader
    from dfm_engine.store.nvdec import why_not_dali

    if decode == "auto" and (reason := why_not_dali()):
        _log.info("decoding on the CPU: %s", reason)
        return PyavReader()
    try:
        return DaliReader(pipelines=pipelines)
    except EnvironmentUnfit as error:
        if decode == "dali":
            raise
        _log.warning("decoding on the CPU: %s", error)
        return PyavReader()


def pick_device(name: str) -> str:
    """`cpu` or `cuda`, from what `--device` says.

    Raises:
        UsageError: another word, or a device that is not there.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device takes auto, cpu or cuda, found {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch sees no CUDA device; `dfm-engine doctor` says why")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name
