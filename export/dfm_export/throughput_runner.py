"""The runner for a GPU's limit: `tensor_core`, each size of a call recorded as a CUDA graph.

Keypoints stay float32 and eager: they are found once per source and once per driving clip. What is
replayed is `animate`, some 80 kernels, which a host cannot launch as fast as an H100 runs them at
small batches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dfm_engine.backends import TorchRunner
from dfm_engine.errors import EnvironmentUnfit, UsageError
from dfm_engine.exact_kernels import exact_kernels
from dfm_engine.fomm.model import Fomm
from dfm_engine.fomm.values import Keypoints, SourceFeatures
from dfm_export.cases import FommCases, Tensors
from dfm_export.cuda_graphs import CudaGraphs, Record
from dfm_export.front_door import Part, normal_device
from dfm_export.parity import Call, check, measure_fomm
from dfm_export.precision import plan_of
from dfm_export.tensor_core import TensorCoreGenerator

__all__ = ["ThroughputRunner", "open_throughput_runner"]

PLAN = "fp16_islands"


class ThroughputRunner:
    """Implements `Runner` in float16 with float32 islands; features come and go in float16.

    Args:
        fomm: in float32; taken over for the keypoints.
        device: CUDA.
        dtype: of the generator.
        record: see `CudaGraphs`; None records a CUDA graph.
    """

    calls_at_once = 1

    def __init__(
        self,
        fomm: Fomm,
        *,
        device: torch.device | str = "cuda",
        dtype: torch.dtype = torch.float16,
        record: Record | None = None,
    ) -> None:
        self.device = normal_device(device)
        self.generator = TensorCoreGenerator(fomm, device=self.device, dtype=dtype)
        self._exact = TorchRunner(fomm, self.device)
        self._graphs = CudaGraphs(self._launch, self.device, record=record)

    @property
    def name(self) -> str:
        """`torch-cuda-fp16_islands`."""
        return f"torch-{self.device.type}-{PLAN}"

    @property
    def frame_size(self) -> tuple[int, int]:
        """(height, width) that the weights were trained for."""
        return self._exact.frame_size

    @property
    def weights_sha256(self) -> str:
        """Of the checkpoint file."""
        return self._exact.weights_sha256

    def keypoints(self, images: Tensor) -> Keypoints:
        """See `Runner`; in float32."""
        return self._exact.keypoints(images)

    def source(self, images: Tensor) -> SourceFeatures:
        """See `Runner`; one by one, so that no source's bits depend on its neighbours."""
        with torch.inference_mode(), exact_kernels():
            return SourceFeatures.cat([self.generator.source(image) for image in images.split(1)])

    def animate(
        self, features: SourceFeatures, kp_source: Keypoints, kp_driving: Keypoints
    ) -> Tensor:
        """See `Runner`. One source serves all rows without a copy of its features."""
        rows = len(kp_driving)
        if len(features) != len(kp_source):
            features, kp_source = features.expand(rows), kp_source.expand(rows)
        feeds = {
            "encoded": features.encoded.contiguous(memory_format=torch.channels_last),
            "small": features.small.contiguous(memory_format=torch.channels_last),
            "source_value": kp_source.value.contiguous(),
            "driving_value": kp_driving.value.contiguous(),
        }
        if kp_source.jacobian is not None and kp_driving.jacobian is not None:
            feeds["source_jacobian"] = kp_source.jacobian.contiguous()
            feeds["driving_jacobian"] = kp_driving.jacobian.contiguous()
        shape = (rows, features.small.shape[1], *self.frame_size)
        with torch.inference_mode(), exact_kernels():
            out = {"prediction": torch.empty(shape, device=self.device)}
            self._graphs.run(Part(feeds, out))
        return out["prediction"]

    def unrecorded(
        self, features: SourceFeatures, kp_source: Keypoints, kp_driving: Keypoints
    ) -> Tensor:
        """As `animate`, launched kernel by kernel: what is recorded, for counting and profiling."""
        with torch.inference_mode(), exact_kernels():
            return self.generator.animate(features, kp_source, kp_driving)

    def close(self) -> None:
        """Forget the recorded sizes, and their memory."""
        self._graphs.close()

    def _launch(self, part: Part) -> None:
        feeds = part.feeds
        prediction = self.generator.animate(
            SourceFeatures(feeds["encoded"], feeds["small"]),
            Keypoints(feeds["source_value"], feeds.get("source_jacobian")),
            Keypoints(feeds["driving_value"], feeds.get("driving_jacobian")),
        )
        part.out["prediction"].copy_(prediction)


def open_throughput_runner(
    fomm: Fomm, device: str, *, say: Callable[[str], None] = lambda text: None
) -> ThroughputRunner:
    """The runner, once it has passed the gate of its precision on this GPU.

    Args:
        fomm: as loaded, in float32 on the CPU; taken over.
        device: of the command line.
        say: told the figures.

    Raises:
        UsageError: not a GPU; 16-bit convolutions of a CPU are absent or slow.
        EnvironmentUnfit: torch sees no GPU.
        CheckFailed: too far from float32, with the numbers.
    """
    if device != "cuda":
        raise UsageError(
            f"--precision {PLAN} by torch needs a GPU, the device is {device}; --backend "
            "onnxruntime takes it on a CPU, and --precision fp32 is faster there"
        )
    if not torch.cuda.is_available():
        raise EnvironmentUnfit("torch sees no CUDA device; `dfm-engine doctor` says why")
    cases = FommCases(fomm)
    runner = ThroughputRunner(fomm, device=device)
    errors = measure_fomm(_calls(runner), cases)
    check(errors, plan_of("fomm", PLAN), what=f"{runner.name} on this GPU")
    runner.close()  # what this thread recorded
    say(f"{runner.name}: {errors['animate_db']:.1f} dB from float32 in the worst frame")
    return runner


def _calls(runner: ThroughputRunner) -> dict[str, Call]:
    """The runner as `measure_fomm` calls graphs; features stay as the runner has them."""
    kept: dict[str, SourceFeatures] = {}

    def source(feeds: Tensors) -> dict[str, Tensor]:
        kept["features"] = features = runner.source(feeds["images"].to(runner.device))
        return {"encoded": features.encoded.float().cpu(), "small": features.small.float().cpu()}

    def animate(feeds: Tensors) -> dict[str, Tensor]:
        rows = len(feeds["driving_value"])
        sources = len(feeds["source_value"])
        each = [row * sources // rows for row in range(rows)]
        on = {name: tensor.to(runner.device) for name, tensor in feeds.items()}
        prediction = runner.animate(
            kept["features"][each],
            Keypoints(on["source_value"], on.get("source_jacobian"))[each],
            Keypoints(on["driving_value"], on.get("driving_jacobian")),
        )
        return {"prediction": prediction.cpu()}

    return {"source": source, "animate": animate}
