"""ONNX Runtime's runner, and torch's, on the CPU: values, no copies, no silent fallback."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from dfmtest_onnx_graphs import WARP, Warp, warp_feeds, write_warp
from onnx import helper, numpy_helper

from dfm_engine.crew import Crew
from dfm_engine.errors import EnvironmentUnfit
from dfm_export import ort_graph
from dfm_export.cuda_graphs import MOST, CudaGraphs
from dfm_export.front_door import Part
from dfm_export.models import choose_backend
from dfm_export.ort_graph import OrtGraph, check_provider, open_session
from dfm_export.ort_stages import StagedGraph
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


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize("is_staged", [True, False])
def test_sampling_by_torch_and_by_onnxruntime_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_staged: bool, align_corners: bool
) -> None:
    monkeypatch.setattr(ort_graph, "_has_samples", lambda _: is_staged)
    path = write_warp(tmp_path / "warp.onnx", align_corners=align_corners)
    runner, feeds = OrtGraph(path, WARP), warp_feeds(3)
    assert (runner._staged is not None) == is_staged
    wanted = Warp(align_corners=align_corners)(*feeds.values())
    torch.testing.assert_close(runner.run(feeds)["mask"], wanted, rtol=0, atol=2e-6)


def test_a_graph_is_cut_at_each_sample_and_nowhere_else(tmp_path: Path) -> None:
    """A sample of inputs, two of its result side by side, a weight and a constant used twice."""
    sample = {"mode": "bilinear", "padding_mode": "zeros", "align_corners": 1}
    node = helper.make_node
    nodes = [
        node("Constant", [], ["two"], value_float=2.0),
        node("GridSample", ["image", "grid"], ["a"], **sample),
        node("Mul", ["image", "two"], ["unused_before"]),
        node("Add", ["a", "bias"], ["b"]),
        node("GridSample", ["b", "grid"], ["c"], **sample),
        node("GridSample", ["a", "grid"], ["d"], **sample),
        node("Sub", ["c", "d"], ["e"]),
        node("Mul", ["e", "two"], ["f"]),
        node("Add", ["f", "bias"], ["g"]),
        node("Add", ["g", "unused_before"], ["out"]),
    ]
    tensors = [
        helper.make_tensor_value_info(name, 1, ["batch", *sides])
        for name, sides in (("image", (3, 8, 8)), ("grid", (8, 8, 2)), ("out", (3, 8, 8)))
    ]
    bias = numpy_helper.from_array(np.full((1, 3, 1, 1), 0.5, dtype=np.float32), "bias")
    graph = helper.make_graph(nodes, "g", tensors[:2], tensors[2:], [bias])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(tmp_path / "g.onnx"))
    opened: list[bytes] = []

    def open_part(data: bytes) -> Any:
        opened.append(data)
        return open_session(data, "cpu")

    staged = StagedGraph(tmp_path / "g.onnx", open_part)
    assert (staged.inputs, staged.outputs, staged.samples) == (("image", "grid"), ("out",), 3)
    parts = [[n.op_type for n in onnx.load_from_string(data).graph.node] for data in opened]
    assert parts == [["Constant", "Mul"], ["Add"], ["Constant", "Sub", "Mul", "Add", "Add"]]
    for rows in (1, 3):
        feeds = warp_feeds(rows)
        (found,) = staged.run(feeds).values()
        arrays = {name: tensor.numpy() for name, tensor in feeds.items()}
        (wanted,) = open_session(tmp_path / "g.onnx", "cpu").run(None, arrays)
        torch.testing.assert_close(found, torch.from_numpy(wanted), rtol=0, atol=2e-6)


def test_what_is_made_of_weights_alone_stays_with_who_uses_it(tmp_path: Path) -> None:
    """A dequantised weight that came from another session would be no integer convolution's."""
    node = helper.make_node
    nodes = [
        node("DequantizeLinear", ["w8", "scale", "zero"], ["w"]),
        node("GridSample", ["image", "grid"], ["a"], mode="bilinear", padding_mode="zeros"),
        node("Neg", ["w"], ["minus_w"]),
        node("Conv", ["a", "minus_w"], ["b"]),
        node("Conv", ["b", "w"], ["out"]),
    ]
    tensors = [
        helper.make_tensor_value_info(name, 1, ["batch", *sides])
        for name, sides in (("image", (3, 8, 8)), ("grid", (8, 8, 2)), ("out", (3, 8, 8)))
    ]
    weights = [
        numpy_helper.from_array(np.arange(9, dtype=np.int8).reshape(3, 3, 1, 1), "w8"),
        numpy_helper.from_array(np.array(0.1, dtype=np.float32), "scale"),
        numpy_helper.from_array(np.array(0, dtype=np.int8), "zero"),
    ]
    graph = helper.make_graph(nodes, "g", tensors[:2], tensors[2:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(tmp_path / "g.onnx"))
    opened: list[bytes] = []

    def open_part(data: bytes) -> Any:
        opened.append(data)
        return open_session(data, "cpu")

    staged = StagedGraph(tmp_path / "g.onnx", open_part)
    (part,) = (onnx.load_from_string(data).graph for data in opened)
    assert [n.op_type for n in part.node] == ["DequantizeLinear", "Neg", "Conv", "Conv"]
    assert [value.name for value in part.input] == ["a"]
    feeds = warp_feeds(2)
    (found,) = staged.run(feeds).values()
    arrays = {name: tensor.numpy() for name, tensor in feeds.items()}
    (wanted,) = open_session(tmp_path / "g.onnx", "cpu").run(None, arrays)
    torch.testing.assert_close(found, torch.from_numpy(wanted), rtol=0, atol=2e-6)


@pytest.mark.parametrize("is_staged", [True, False])
def test_rows_are_dealt_out_to_a_crew_and_come_out_as_one_by_one(
    path: Path, monkeypatch: pytest.MonkeyPatch, is_staged: bool
) -> None:
    monkeypatch.setattr(ort_graph, "_has_samples", lambda _: is_staged)
    crew, feeds = Crew(3), warp_feeds(7)
    dealt = OrtGraph(path, WARP, max_batch=1, crew=crew)
    seen: set[int] = set()
    compute = dealt._compute

    def watched(part: Part) -> None:
        seen.add(threading.get_ident())
        time.sleep(0.01)  # so that no thread is done with all of them before another begins
        compute(part)

    monkeypatch.setattr(dealt, "_compute", watched)
    alone = OrtGraph(path, WARP, max_batch=1, threads=1)
    assert torch.equal(dealt.run(feeds)["mask"], alone.run(feeds)["mask"])
    assert 1 < len(seen) <= 3
    assert threading.get_ident() not in seen


def test_inputs_are_read_where_they_are(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_graph, "_has_samples", lambda _: False)
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


def test_a_provider_that_is_not_built_in_is_refused_before_anything_is_exported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_provider("cpu")
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(EnvironmentUnfit, match="no CUDAExecutionProvider, only CPUExecution"):
        choose_backend("onnxruntime", "cuda")
    assert choose_backend("onnxruntime", "cpu") == "onnxruntime"


def test_what_is_made_of_weights_alone_can_be_sampled_and_given(tmp_path: Path) -> None:
    node = helper.make_node
    nodes = [
        node("Neg", ["minus_grid"], ["grid"]),
        node("GridSample", ["image", "grid"], ["a"], mode="bilinear", padding_mode="zeros"),
        node("Add", ["a", "image"], ["out"]),
    ]
    tensors = [
        helper.make_tensor_value_info("image", 1, [1, 3, 8, 8]),
        helper.make_tensor_value_info("out", 1, [1, 3, 8, 8]),
        helper.make_tensor_value_info("grid", 1, [1, 8, 8, 2]),
    ]
    random = np.random.default_rng(3).uniform(-1, 1, (1, 8, 8, 2)).astype(np.float32)
    weights = [numpy_helper.from_array(random, "minus_grid")]
    graph = helper.make_graph(nodes, "g", tensors[:1], tensors[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(tmp_path / "g.onnx"))
    staged = StagedGraph(tmp_path / "g.onnx", lambda data: open_session(data, "cpu"))
    image = warp_feeds(1)["image"]
    found = staged.run({"image": image})
    wanted = open_session(tmp_path / "g.onnx", "cpu").run(None, {"image": image.numpy()})
    for name, value in zip(("out", "grid"), wanted, strict=True):
        torch.testing.assert_close(found[name], torch.from_numpy(value), rtol=0, atol=2e-6)
