"""A graph through ONNX Runtime, on the CPU or by its CUDA provider, without copies.

Inputs and outputs are bound by address where they are. On a CPU grid sampling is torch's
(`ort_stages`), which is faster at it. ONNX Runtime answers a provider that does
not load with a line in its log and another provider: here that is an error.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from dfm_engine.crew import Crew
from dfm_engine.errors import EnvironmentUnfit
from dfm_export.front_door import Part, normal_device
from dfm_export.ort_stages import StagedGraph
from dfm_export.runners import CheckedGraph
from dfm_export.specs import GraphSpec

__all__ = ["OrtGraph", "check_provider", "open_session"]

MAX_ORT_BATCH = 64
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_ELEMENTS = {"float32": np.float32, "float16": np.float16, "uint8": np.uint8}


class OrtGraph(CheckedGraph):
    """An ONNX file in a session.

    Args:
        path: of the file.
        spec: its inputs and outputs, checked against the session's.
        device: cpu or cuda.
        precision: the plan's name, for `name`.
        max_batch: rows at once; on a CPU 1 keeps a row's bits free of its neighbours and the maps
            of a row in the cache.
        threads: of the session; None: as many as torch has.
        crew: on a CPU, computes the parts of a call side by side, each on one thread, by the same
            session; `threads` then counts for nothing.
        is_urgent: see `CheckedGraph`.
    """

    def __init__(
        self,
        path: Path,
        spec: GraphSpec,
        *,
        device: torch.device | str = "cpu",
        precision: str = "fp32",
        max_batch: int = MAX_ORT_BATCH,
        threads: int | None = None,
        crew: Crew | None = None,
        is_urgent: bool = False,
    ) -> None:
        kind = torch.device(device).type
        _check_device(kind)
        if kind == "cuda":
            crew = None
        super().__init__(
            spec,
            device=device,
            name=f"onnxruntime-{kind}-{precision}",
            max_batch=max_batch,
            crew=crew,
            is_urgent=is_urgent,
        )
        threads = 1 if crew is not None else threads
        if unknown := {t.dtype for t in (*spec.inputs, *spec.outputs)} - set(_ELEMENTS):
            raise EnvironmentUnfit(f"ONNX Runtime binds no {', '.join(unknown)} here")
        self._stream: torch.cuda.Stream | None = None
        if kind == "cuda":
            self._stream = torch.cuda.Stream(self.device)
        self._staged: StagedGraph | None = None
        self._session: Any = None
        if kind == "cpu" and _has_samples(path):
            part = functools.partial(open_session, device="cpu", threads=threads)
            self._staged = StagedGraph(path, part)
            _check_io(self._staged.inputs, self._staged.outputs, spec, path)
            return
        self._session = open_session(path, self.device, threads=threads, stream=self._stream)
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        _check_io([i.name for i in inputs], [o.name for o in outputs], spec, path)

    def close(self) -> None:
        """See `GraphRunner`."""
        super().close()
        self._session = self._staged = None

    def _compute(self, part: Part) -> None:
        if self._staged is not None:
            with self._failing(part):
                made = self._staged.run(part.feeds)
            for name, tensor in made.items():
                part.out[name].copy_(tensor)
            return
        if self._stream is None:
            self._run_bound(part)
            return
        # The session launches into its own stream: ours before it, ours after it.
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        self._run_bound(part)
        current.wait_stream(self._stream)
        for tensor in (*part.feeds.values(), *part.out.values()):
            tensor.record_stream(self._stream)

    def _run_bound(self, part: Part) -> None:
        session: Any = self._session
        binding = session.io_binding()
        kind, index = self.device.type, self.device.index or 0
        for spec in self.spec.inputs:
            tensor = part.feeds[spec.name]
            binding.bind_input(
                spec.name,
                kind,
                index,
                _ELEMENTS[spec.dtype],
                tuple(tensor.shape),
                tensor.data_ptr(),
            )
        for spec in self.spec.outputs:
            tensor = part.out[spec.name]
            binding.bind_output(
                spec.name,
                kind,
                index,
                _ELEMENTS[spec.dtype],
                tuple(tensor.shape),
                tensor.data_ptr(),
            )
        with self._failing(part):
            session.run_with_iobinding(binding)

    @contextlib.contextmanager
    def _failing(self, part: Part) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # its own exceptions derive from nothing closer
            raise EnvironmentUnfit(
                f"{self.name}, graph {self.spec.name!r}: running {tuple(part.feeds)} failed: "
                f"{error}"
            ) from error


def check_provider(device: str) -> None:
    """Refuse an ONNX Runtime that was built without the provider of a device.

    Raises:
        EnvironmentUnfit: says which it has.
    """
    try:
        import onnxruntime
    except (ImportError, OSError):
        return  # `open_session` says so, with the reason
    wanted, found = _PROVIDERS[torch.device(device).type], onnxruntime.get_available_providers()
    if wanted not in found:
        raise EnvironmentUnfit(
            f"ONNX Runtime {onnxruntime.__version__} has no {wanted}, only {', '.join(found)}; "
            "install onnxruntime-gpu in its place"
        )


def open_session(
    model: Path | bytes,
    device: torch.device | str,
    *,
    threads: int | None = None,
    stream: torch.cuda.Stream | None = None,
) -> Any:
    """An inference session whose provider is the one asked for.

    Args:
        model: path of the ONNX file, or its bytes.
        device: cpu or cuda.
        threads: None: as many as torch has.
        stream: of CUDA, to launch into.

    Raises:
        EnvironmentUnfit: ONNX Runtime is absent, or the file or the provider does not load.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise EnvironmentUnfit(
            f"ONNX Runtime does not load ({error}); install onnxruntime-gpu, whose CPU provider "
            "needs no GPU"
        ) from error
    device = normal_device(device)
    _check_device(device.type)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    options.log_severity_level = 3
    # Idle threads that spin take the cores of the encode workers.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    wanted = _PROVIDERS[device.type]
    settings = _cuda_settings(device, stream) if device.type == "cuda" else {}
    try:
        session = ort.InferenceSession(
            model if isinstance(model, bytes) else os.fspath(model),
            sess_options=options,
            providers=[(wanted, settings)],
        )
    except Exception as error:  # its own exceptions derive from nothing closer
        raise EnvironmentUnfit(
            f"ONNX Runtime {ort.__version__} does not open {_name(model)} on {device}: {error}"
        ) from error
    if (found := session.get_providers()[0]) != wanted:
        raise EnvironmentUnfit(
            f"ONNX Runtime {ort.__version__} took {found} where {wanted} was asked for: the "
            "provider's libraries do not load (CUDA, cuDNN); `dfm-engine doctor` says what is here"
        )
    return session


def _cuda_settings(device: torch.device, stream: torch.cuda.Stream | None) -> dict[str, str]:
    settings = {
        "device_id": str(device.index or 0),
        # The arena takes what is asked for instead of the next power of two: torch lives there too.
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "HEURISTIC",  # by shape alone: timed choices differ between runs
        "use_tf32": "0",
    }
    if stream is not None:
        settings["user_compute_stream"] = str(stream.cuda_stream)
    return settings


def _check_device(kind: Literal["cpu", "cuda"] | str) -> None:
    if kind not in _PROVIDERS:
        raise EnvironmentUnfit(f"ONNX Runtime runs here on cpu and cuda, asked for {kind}")
    if kind == "cuda" and not torch.cuda.is_available():
        raise EnvironmentUnfit(
            "--backend onnxruntime on cuda: torch sees no CUDA device; `dfm-engine doctor` says why"
        )


def _name(model: Path | bytes) -> str:
    return "a part of a graph" if isinstance(model, bytes) else repr(os.fspath(model))


def _has_samples(path: Path) -> bool:
    """Whether a file has a GridSample; one that does not parse is ONNX Runtime's to refuse."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(path, load_external_data=False).graph
    except DecodeError:
        return False
    return any(node.op_type == "GridSample" for node in graph.node)


def _check_io(inputs: Sequence[str], outputs: Sequence[str], spec: GraphSpec, path: Path) -> None:
    found = {"inputs": list(inputs), "outputs": list(outputs)}
    wanted = {
        "inputs": [tensor.name for tensor in spec.inputs],
        "outputs": [tensor.name for tensor in spec.outputs],
    }
    if found != wanted:
        raise EnvironmentUnfit(
            f"{os.fspath(path)!r} has {found}, graph {spec.name!r} has {wanted}: another file?"
        )
