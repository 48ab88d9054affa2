"""TensorRT's runner against an engine that computes on the CPU by the addresses it is given."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from dfmtest_fake_trt import STREAM, FakeContext, FakeEngine, FakeStreams, fake_trt
from dfmtest_onnx_graphs import WARP, Warp, warp_feeds

from dfm_engine.errors import EnvironmentUnfit, ShapeError, UsageError
from dfm_export import cuda_graphs, trt_graph
from dfm_export.cache import CachedEngine, EngineCache, EngineKey
from dfm_export.cuda_graphs import CudaGraphs
from dfm_export.specs import GraphSpec, TensorSpec
from dfm_export.to_tensorrt import Profile, load_engine
from dfm_export.trt_api import TensorRtError
from dfm_export.trt_graph import Chip, TrtGraph, load_trt_graph, read_chip


def graph(engine: FakeEngine, trt: Any = None, **settings: Any) -> TrtGraph:
    settings = {"cuda_graphs": False, "streams": FakeStreams(), **settings}
    return TrtGraph(
        trt or fake_trt(), engine, None, WARP, device="cpu", precision="fp32", **settings
    )


def engine(**profile: int) -> FakeEngine:
    return FakeEngine(Warp(), WARP, Profile(**profile))


def test_a_call_reads_and_writes_the_tensors_it_was_given() -> None:
    fake, streams = engine(), FakeStreams()
    runner = graph(fake, streams=streams)
    assert runner.name == "tensorrt-cpu-fp32"
    feeds, out = warp_feeds(5), {"mask": torch.full((5, 4, 8, 8), torch.nan)}
    given = runner.run(feeds, out)
    assert given["mask"] is out["mask"]
    assert torch.equal(out["mask"], Warp()(*feeds.values()))
    ((stream, addresses),) = fake.contexts[0].runs
    assert stream == STREAM  # never the default one
    assert addresses == {name: tensor.data_ptr() for name, tensor in {**feeds, **out}.items()}
    assert [tensor.data_ptr() for tensor in streams.kept] == list(addresses.values())


def test_shapes_follow_every_call_and_the_context_is_kept() -> None:
    fake = engine()
    runner = graph(fake)
    for rows in (3, 1, 8):
        feeds = warp_feeds(rows, seed=rows)
        assert torch.equal(runner.run(feeds)["mask"], Warp()(*feeds.values()))
    assert len(fake.contexts) == 1


def test_more_rows_than_the_profile_takes_go_in_parts_of_one_size() -> None:
    fake = engine(min=2, opt=4, max=4)
    runner = graph(fake)
    assert (runner.min_batch, runner.max_batch) == (2, 4)
    feeds = warp_feeds(10)
    given = runner.run(feeds)["mask"]
    wanted = torch.cat([Warp()(*(t[i : i + 1] for t in feeds.values())) for i in range(10)])
    torch.testing.assert_close(given, wanted, rtol=0, atol=1e-6)
    row = feeds["image"][0].numel() * 4
    starts = [(a["image"] - feeds["image"].data_ptr()) // row for _, a in fake.contexts[0].runs]
    assert starts == [0, 4, 6]


def test_fewer_rows_than_the_profile_takes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"1 rows .* at least 2"):
        graph(engine(min=2, opt=4, max=4)).run(warp_feeds(1))


def test_the_profile_of_sources_does_not_bound_the_fewest_rows() -> None:
    spec = GraphSpec(
        "g",
        (TensorSpec("a", "float32", ("sources", 2)), TensorSpec("b", "float32", ("batch", 2))),
        (TensorSpec("c", "float32", ("batch", 2)),),
    )
    fake = FakeEngine(
        lambda a, b: b + a.repeat_interleave(len(b) // len(a), 0), spec, Profile(min=4)
    )
    runner = TrtGraph(
        fake_trt(),
        fake,
        None,
        spec,
        device="cpu",
        precision="fp32",
        cuda_graphs=False,
        streams=FakeStreams(),
    )
    assert runner.min_batch == 4
    b = torch.arange(8.0).reshape(4, 2)
    out = runner.run({"a": torch.ones(1, 2), "b": b})["c"]
    assert torch.equal(out, b + 1)
    assert runner.run({"a": b[:2] * 10, "b": b})["c"].tolist() == [
        [0, 11],
        [2, 13],
        [24, 35],
        [26, 37],
    ]


def test_each_thread_has_a_context_of_its_own() -> None:
    fake = engine()
    runner = graph(fake)
    results: dict[int, torch.Tensor] = {}
    barrier = threading.Barrier(3)

    def work(seed: int) -> None:
        barrier.wait()
        for _ in range(5):
            results[seed] = runner.run(warp_feeds(4, seed=seed))["mask"]

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len({id(context) for context in fake.contexts}) == 3
    for seed in range(3):
        assert torch.equal(results[seed], Warp()(*warp_feeds(4, seed=seed).values()))


def test_each_recorded_size_has_a_context_of_its_own() -> None:
    fake = engine()
    runner = graph(fake)

    def record(launch, _device):
        launch()  # as a capture does; a replay runs on the same context's state
        return launch

    runner._recorded = CudaGraphs(
        lambda part: runner._enqueue(part, 0), runner.device, record=record
    )
    for rows in (1, 4, 1, 4):  # back to a size after another was used
        feeds = warp_feeds(rows, seed=rows)
        assert torch.equal(runner.run(feeds)["mask"], Warp()(*feeds.values()))
    assert len(fake.contexts) == 2
    for context in fake.contexts:  # bound as it was recorded, every time
        assert len({tuple(sorted(addresses.items())) for _, addresses in context.runs}) == 1


def test_the_context_of_a_forgotten_size_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graphs, "MOST", 2)
    runner = graph(engine())

    def record(launch, _device):
        launch()
        return launch

    runner._recorded = CudaGraphs(
        lambda part: runner._enqueue(part, 0), runner.device, record=record
    )
    for rows in (1, 2, 3, 4, 5, 1):
        feeds = warp_feeds(rows, seed=rows)
        assert torch.equal(runner.run(feeds)["mask"], Warp()(*feeds.values()))
        assert len(runner._contexts.of_sizes) <= 3  # two recorded, and the one being so


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("set_input_shape", r"refused shape \(4, 3, 8, 8\) for input 'image': warning: said so"),
        ("set_tensor_address", "refused the address of 'image': warning: said so"),
        ("execute_async_v3", "did not run: warning: said so"),
    ],
)
def test_what_the_library_refuses_is_an_error_with_its_words(
    monkeypatch: pytest.MonkeyPatch, method: str, message: str
) -> None:
    trt = fake_trt()

    def refuse(*_: object) -> bool:
        trt.messages.add("warning", "said so")
        return False

    monkeypatch.setattr(FakeContext, method, refuse)
    with pytest.raises(TensorRtError, match=message):
        graph(engine(), trt).run(warp_feeds(4))


def test_no_context_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEngine, "create_execution_context", lambda *_: None)
    with pytest.raises(TensorRtError, match="gave no execution context"):
        graph(engine()).run(warp_feeds(1))


def test_an_output_of_another_size_is_never_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeContext, "get_tensor_shape", lambda *_: (4, 9, 9, 9))
    with pytest.raises(TensorRtError, match=r"'mask' is \(4, 9, 9, 9\), room is for \(4, 4, 8, 8"):
        graph(engine()).run(warp_feeds(4))


def test_an_engine_of_another_graph_is_refused_on_opening() -> None:
    other = GraphSpec(
        "warp", (WARP.inputs[0], TensorSpec("grid", "float16", WARP.inputs[1].shape)), WARP.outputs
    )
    with pytest.raises(TensorRtError, match=r"'grid' is \('INPUT', 'HALF', .*must be .*'FLOAT'"):
        graph(FakeEngine(Warp(), other))


def test_a_closed_runner_refuses_to_run() -> None:
    runner = graph(engine())
    runner.close()
    runner.close()
    with pytest.raises(EnvironmentUnfit, match="is closed"):
        runner.run(warp_feeds(1))


class FakeConfig:
    """tensorrt-rtx's runtime configuration."""

    def __init__(self) -> None:
        self.cuda_graph_strategy = "none"
        self.dynamic_shapes_kernel_specialization_strategy = "LAZY"
        self.cache: Any = None

    def create_runtime_cache(self) -> Any:
        held: list[bytes] = []
        return SimpleNamespace(
            held=held, deserialize=held.append, serialize=lambda: b"compiled" + b"".join(held)
        )

    def set_runtime_cache(self, cache: Any) -> None:
        self.cache = cache


def test_rtx_keeps_its_kernels_and_records_its_own_graphs(tmp_path: Path) -> None:
    class Engine(FakeEngine):
        def create_runtime_config(self) -> FakeConfig:
            return FakeConfig()

    trt = fake_trt(
        "tensorrt-rtx",
        CudaGraphStrategy=SimpleNamespace(WHOLE_GRAPH_CAPTURE="whole"),
        DynamicShapesKernelSpecializationStrategy=SimpleNamespace(EAGER="eager"),
    )
    file = tmp_path / "runtime-x.cache"
    for kept in ([], [b"compiled"]):
        fake = Engine(Warp(), WARP)
        runner = graph(fake, trt, runtime_cache=file, cuda_graphs=True)
        runner.warmup([2])
        config: Any = fake.contexts[0].config
        assert config.cuda_graph_strategy == "whole"
        assert config.dynamic_shapes_kernel_specialization_strategy == "eager"
        assert config.cache.held == kept
        runner.close()
    assert file.read_bytes() == b"compiledcompiled"


def test_a_machine_without_a_gpu_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(EnvironmentUnfit, match="--backend onnxruntime runs everywhere"):
        read_chip("cuda")
    with pytest.raises(EnvironmentUnfit, match="asked for cpu"):
        read_chip("cpu")


def test_rtx_on_a_chip_that_it_does_not_know_is_refused_before_the_plan_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(trt_graph, "read_chip", lambda _: Chip("NVIDIA H200", "sm90"))
    with pytest.raises(UsageError, match=r"does not know the chip sm90.*dfm-engine\[tensorrt\]"):
        load_trt_graph(
            fake_trt("tensorrt-rtx"), tmp_path / "absent", WARP, device="cuda", precision="fp32"
        )


def _key() -> EngineKey:
    return EngineKey(
        graph="warp",
        onnx_sha256="0",
        precision="fp32",
        profile={},
        flags={},
        flavour="tensorrt",
        library_version="1.2.3",
        cuda="13",
        system="Linux-x86_64",
        target="x",
    )


@pytest.mark.parametrize(
    ("damaged", "message"),
    [(b"noise", "magic tag does not match"), (b"sm86 plan", "built for sm86")],
)
def test_a_plan_that_does_not_load_is_rebuilt_from_the_cache(
    tmp_path: Path, damaged: bytes, message: str
) -> None:
    """A corrupted plan, and one of another chip, both whole by their hash."""
    trt = fake_trt(plans={b"right plan": engine()})
    cache = EngineCache(tmp_path)

    def made(plan: bytes) -> Any:
        return SimpleNamespace(plan=plan, to_json=dict)

    def load(entry: CachedEngine) -> TrtGraph:
        _, loaded = load_engine(trt, entry.path.read_bytes(), what="the plan")
        return graph(loaded, trt)

    cache.get(_key(), lambda: made(damaged))
    runner = cache.open(_key(), lambda: made(b"right plan"), load)
    feeds = warp_feeds(2)
    assert torch.equal(runner.run(feeds)["mask"], Warp()(*feeds.values()))
    reason = (tmp_path / "quarantine" / _key().digest / "reason.txt").read_text()
    assert message in reason
    assert "library version" in reason
