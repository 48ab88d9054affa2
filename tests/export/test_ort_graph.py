"""ONNX Runtime's runner, and torch's, on the CPU: values, no copies, no silent fallback."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from dfmtest_onnx_graphs import WARP, Warp, warp_feeds, write_warp

from dfm_engine.errors import EnvironmentUnfit
from dfm_export.cuda_graphs import MOST, CudaGraphs
from dfm_export.front_door import Part
from dfm_export.ort_graph import OrtGraph, open_session
from dfm_export.runners import CompiledTorchGraph, TorchGraph
from dfm_export.specs import GraphSpec


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_warp(tmp_path / "warp.onnx")


def test_onnxruntime_and_torch_agree(path: Path) -> None:
    feeds = warp_feeds(5)
    wanted = Warp()(*feeds.values())
    ort, torch_ = OrtGraph(path, WARP), TorchGraph(Warp(), WARP)
    assert (ort.name, torch_.name) == ("onnxruntime-cpu-fp32", "torch-cpu-fp32")
    assert torch.equal(torch_.run(feeds)["mask"], wanted)
    # 27 products and a softmax: a few roundings of 2^-24
    torch.testing.assert_close(ort.run(feeds)["mask"], wanted, rtol=0, atol=2e-6)


def test_results_are_written_where_the_caller_says(path: Path) -> None:
    feeds, room = warp_feeds(3), torch.full((4, 4, 8, 8), torch.nan)
    given = OrtGraph(path, WARP).run(feeds, {"mask": room[:3]})["mask"]
    assert given.data_ptr() == room.data_ptr()
    torch.testing.assert_close(room[:3], Warp()(*feeds.values()), rtol=0, atol=2e-6)
    assert room[3].isnan().all()


def test_inputs_are_read_where_they_are(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bound: dict[str, int] = {}
    runner = OrtGraph(path, WARP)
    binding: Any = runner._session.io_binding()

    class Spy:
        def __getattr__(self, name: str) -> Any:
            def call(tensor: str, *rest: Any) -> Any:
                bound[tensor] = rest[-1]
                return getattr(binding, name)(tensor, *rest)

            return call

    session = runner._session
    runner._session = SimpleNamespace(
        io_binding=Spy, run_with_iobinding=lambda _: session.run_with_iobinding(binding)
    )
    feeds = warp_feeds(2)
    given = runner.run(feeds)
    wanted = {name: tensor.data_ptr() for name, tensor in {**feeds, **given}.items()}
    assert bound == wanted


@pytest.mark.parametrize("most", [1, 2, 3])
def test_parts_give_what_the_whole_gives(path: Path, most: int) -> None:
    feeds = warp_feeds(7)
    parts = OrtGraph(path, WARP, max_batch=most).run(feeds)["mask"]
    alone = OrtGraph(path, WARP, max_batch=1)
    for row in range(7):
        one = alone.run({name: tensor[row : row + 1] for name, tensor in feeds.items()})["mask"]
        if most == 1:
            assert torch.equal(parts[row : row + 1], one)
        else:
            torch.testing.assert_close(parts[row : row + 1], one, rtol=0, atol=1e-6)


def test_warming_up_runs_every_size(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    runner = OrtGraph(path, WARP)
    compute = runner._compute
    monkeypatch.setattr(
        runner, "_compute", lambda part: (sizes.append(len(part.feeds["grid"])), compute(part))
    )
    runner.warmup([1, 4])
    assert sizes == [1, 4]


def test_another_provider_than_the_one_asked_for_is_an_error(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    fallen_back = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: fallen_back)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    with pytest.raises(EnvironmentUnfit, match="took CPUExecutionProvider where CUDAExec"):
        open_session(path, "cuda")


def test_cuda_without_a_device_is_refused_at_once(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EnvironmentUnfit, match="sees no CUDA device"):
        OrtGraph(path, WARP, device="cuda")
    with pytest.raises(EnvironmentUnfit, match="needs a CUDA device, asked for cpu"):
        CompiledTorchGraph(Warp(), WARP, device="cpu")
    with pytest.raises(EnvironmentUnfit, match="cpu and cuda, asked for mps"):
        OrtGraph(path, WARP, device="mps")


def test_a_file_that_does_not_open_is_an_error_with_its_path(tmp_path: Path) -> None:
    file = tmp_path / "noise.onnx"
    file.write_bytes(b"noise")
    with pytest.raises(EnvironmentUnfit, match=r"does not open .*noise\.onnx"):
        OrtGraph(file, WARP)


def test_a_file_of_another_graph_is_refused(tmp_path: Path, path: Path) -> None:
    other = write_warp(tmp_path / "other.onnx", input_name="picture")
    with pytest.raises(EnvironmentUnfit, match="another file"):
        OrtGraph(other, WARP)
    half = GraphSpec(
        "warp", WARP.inputs, tuple(type(t)(t.name, "bfloat16", t.shape) for t in WARP.outputs)
    )
    with pytest.raises(EnvironmentUnfit, match="binds no bfloat16"):
        OrtGraph(path, half)


def test_the_cpu_session_takes_torchs_threads_and_does_not_spin(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    seen = []
    make = onnxruntime.InferenceSession

    def spy(file: str, sess_options: Any, providers: Any) -> Any:
        seen.append(sess_options)
        return make(file, sess_options=sess_options, providers=providers)

    monkeypatch.setattr(onnxruntime, "InferenceSession", spy)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    OrtGraph(path, WARP)
    assert seen[0].intra_op_num_threads == 3
    assert seen[0].get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_a_recorded_graph_is_replayed_with_each_calls_own_tensors() -> None:
    """Recording played by a launch that is called again; the tensors are what matters."""
    recorded = []

    def record(launch: Any, device: torch.device) -> Any:
        recorded.append(launch)
        launch()
        return launch

    def launch(part: Part) -> None:
        part.out["y"].copy_(part.feeds["x"] * 2)

    graphs = CudaGraphs(launch, torch.device("cpu"), record=record)
    for rows in (2, 3, 2, 2):
        part = Part({"x": torch.rand(rows, 4)}, {"y": torch.full((rows, 4), torch.nan)})
        graphs.run(part)
        assert torch.equal(part.out["y"], part.feeds["x"] * 2)
    assert len(recorded) == 2  # once a size
    for rows in range(4, 4 + MOST):
        graphs.run(Part({"x": torch.rand(rows, 4)}, {"y": torch.empty(rows, 4)}))
    assert len(graphs.kept) == MOST
    others = []
    thread = threading.Thread(target=lambda: others.append(dict(graphs.kept)))
    thread.start()
    thread.join()
    assert others == [{}]  # tensors of one thread are never written by another
