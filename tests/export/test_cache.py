"""The engine cache: keys, damage, locks. No TensorRT is needed, and none is loaded."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dfm_engine.errors import EnvironmentUnfit
from dfm_export import cache as cache_module
from dfm_export.cache import CachedEngine, EngineCache, EngineKey, engine_key
from dfm_export.trt_api import TensorRtError

KEY = EngineKey(
    graph="animate",
    onnx_sha256="ab" * 32,
    precision="fp16_islands",
    profile={"x": [[1, 3], [8, 3], [32, 3]]},
    flags={"tf32": False, "optimisation": None},
    flavour="tensorrt-rtx",
    library_version="1.7.1.116",
    cuda="13",
    system="Linux-x86_64",
    target="sm86,sm89",
)


@dataclasses.dataclass
class FakeBuild:
    """Counts its calls; every engine is another one."""

    calls: int = 0
    plan: bytes = b""

    def __call__(self) -> FakeBuild:
        self.calls += 1
        self.plan = f"engine {self.calls}".encode() * 100
        return self

    def to_json(self) -> dict[str, Any]:
        return {"build_seconds": 1.5}


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


@pytest.fixture
def build() -> FakeBuild:
    return FakeBuild()


def test_every_fact_changes_the_key() -> None:
    others: dict[str, Any] = {
        "graph": "keypoints",
        "onnx_sha256": "cd" * 32,
        "precision": "fp32",
        "profile": {"x": [[1, 3], [8, 3], [64, 3]]},
        "flags": {"tf32": True, "optimisation": None},
        "flavour": "tensorrt",
        "library_version": "1.7.1.117",
        "cuda": "12",
        "system": "Windows-x86_64",
        "target": "sm86",
    }
    assert set(others) == {field.name for field in dataclasses.fields(EngineKey)}
    digests = {dataclasses.replace(KEY, **{name: value}).digest for name, value in others.items()}
    assert len({*digests, KEY.digest}) == 11


def test_a_key_does_not_depend_on_the_order_of_its_tables() -> None:
    turned = dataclasses.replace(KEY, flags={"optimisation": None, "tf32": False})
    assert turned.digest == KEY.digest


def test_computing_a_key_loads_neither_tensorrt_nor_torch() -> None:
    script = """
import sys
from dfm_export import cache, trt_api
trt_api.metadata.version = lambda name: "10.16.1.11"
key = cache.engine_key(graph="g", onnx_sha256="0", precision="fp32",
    profile={"x": ((1,), (2,), (3,))}, flags={}, flavour="tensorrt", target="NVIDIA H200 sm90")
print(key.library_version, key.cuda, len(key.digest))
print(sorted({name.split(".")[0] for name in sys.modules} & {
    "torch", "cuda", "onnx", "tensorrt", "tensorrt_bindings", "tensorrt_rtx"}))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["10.16.1.11 13 64", "[]"]


def test_an_absent_library_has_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "library_version", lambda _: None)
    with pytest.raises(EnvironmentUnfit, match="tensorrt is not installed"):
        engine_key(
            graph="g",
            onnx_sha256="",
            precision="fp32",
            profile={},
            flags={},
            flavour="tensorrt",
            target="",
        )


def test_an_engine_is_built_once_and_its_plan_is_raw(cache: EngineCache, build: FakeBuild) -> None:
    first = cache.get(KEY, build, facts={"parity": {"psnr_db": 50.5}})
    again = cache.get(KEY, build)
    assert build.calls == 1
    assert (first.was_built, again.was_built) == (True, False)
    assert again.path == cache.root / KEY.digest[:2] / KEY.digest / "engine.plan"
    assert again.path.read_bytes() == build.plan
    sidecar = json.loads(again.path.with_name("manifest.json").read_bytes())
    assert sidecar == again.manifest == first.manifest
    assert sidecar["key"] == KEY.to_json()
    assert sidecar["sha256"] == hashlib.sha256(build.plan).hexdigest()
    assert sidecar["size_bytes"] == len(build.plan)
    assert sidecar["build_seconds"] == 1.5
    assert sidecar["parity"] == {"psnr_db": 50.5}


def test_two_keys_have_two_engines(cache: EngineCache, build: FakeBuild) -> None:
    other = dataclasses.replace(KEY, target="sm120")
    assert cache.get(KEY, build).path != cache.get(other, build).path
    assert build.calls == 2


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda entry: (entry / "engine.plan").write_bytes(b"x" * 800), "sha256"),
        (lambda entry: os.truncate(entry / "engine.plan", 10), "has 10 bytes"),
        (lambda entry: (entry / "engine.plan").unlink(), "cannot be read"),
        (lambda entry: (entry / "manifest.json").write_text("{"), "cannot be read"),
        (lambda entry: (entry / "manifest.json").write_text("[]"), "not of format 1"),
        (
            lambda entry: (entry / "manifest.json").write_text('{"format": 1, "key": {}}'),
            "of another key",
        ),
    ],
)
def test_a_damaged_entry_is_put_aside_and_built_once_more(
    cache: EngineCache, build: FakeBuild, damage: Callable[[Path], object], reason: str
) -> None:
    entry = cache.get(KEY, build).path.parent
    damage(entry)
    again = cache.get(KEY, build)
    assert build.calls == 2
    assert again.path.read_bytes() == build.plan
    aside = cache.root / "quarantine" / KEY.digest
    assert reason in (aside / "reason.txt").read_text()
    assert cache.report().quarantined == 1
    cache.get(KEY, build)
    assert build.calls == 2


def test_a_half_written_entry_is_never_taken(cache: EngineCache, build: FakeBuild) -> None:
    """What a kill leaves: between plan and manifest, and in the midst of the plan."""
    entry = cache.entry(KEY)
    entry.mkdir(parents=True)
    (entry / "engine.plan").write_bytes(b"a plan without a manifest")
    (entry / "engine.plan.tmp-1234").write_bytes(b"half of")
    engine = cache.get(KEY, build)
    assert engine.was_built
    assert sorted(path.name for path in entry.iterdir()) == ["engine.plan", "manifest.json"]
    assert not (cache.root / "quarantine").exists()


def test_a_build_that_fails_leaves_nothing(cache: EngineCache, build: FakeBuild) -> None:
    def fail() -> FakeBuild:
        raise TensorRtError("no")

    with pytest.raises(TensorRtError, match="no"):
        cache.get(KEY, fail)
    assert not cache.entry(KEY).exists()
    assert cache.get(KEY, build).was_built  # the lock was let go


def test_an_engine_that_does_not_load_is_rebuilt_once(cache: EngineCache, build: FakeBuild) -> None:
    cache.get(KEY, build)
    loads = []

    def load(engine: CachedEngine) -> bytes:
        loads.append(engine.path.read_bytes())
        if len(loads) == 1:
            raise TensorRtError("serialised for another chip")
        return loads[-1]

    assert cache.open(KEY, build, load) == b"engine 2" * 100
    assert build.calls == 2
    reason = (cache.root / "quarantine" / KEY.digest / "reason.txt").read_text()
    assert reason == "serialised for another chip\n"


def test_an_engine_that_never_loads_is_not_rebuilt_for_ever(
    cache: EngineCache, build: FakeBuild
) -> None:
    def load(engine: CachedEngine) -> None:
        raise TensorRtError("no such chip")

    with pytest.raises(TensorRtError, match="no such chip"):
        cache.open(KEY, build, load)  # just built: no second try
    assert build.calls == 1
    with pytest.raises(TensorRtError, match="no such chip"):
        cache.open(KEY, build, load)  # found: one second try
    assert build.calls == 2


def _build_slowly(root: Path, log: Path, start: float) -> None:
    class Slow(FakeBuild):
        def __call__(self) -> FakeBuild:
            with log.open("a") as file:
                file.write(f"{os.getpid()}\n")
            time.sleep(0.3)
            return super().__call__()

    while time.time() < start:
        time.sleep(0.01)
    engine = EngineCache(root).get(KEY, Slow())
    assert engine.path.read_bytes() == b"engine 1" * 100


def test_two_processes_build_one_key_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    log, start = tmp_path / "builds", time.time() + 0.2
    workers = [
        context.Process(target=_build_slowly, args=(tmp_path / "engines", log, start))
        for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(log.read_text().split()) == 1


def test_the_report_counts_every_byte(cache: EngineCache, build: FakeBuild) -> None:
    assert cache.report().size_bytes == 0
    engine = cache.get(KEY, build)
    engine.runtime_cache("NVIDIA GeForce RTX 4090").write_bytes(b"k" * 1000)
    report = cache.report()
    files = [path for path in cache.root.rglob("*") if path.is_file()]
    assert report.size_bytes == sum(path.stat().st_size for path in files) > 1800
    assert [entry["key"]["graph"] for entry in report.entries] == ["animate"]
    assert report.lines()[0].strip().startswith("0.0 MB  animate fp16_islands, tensorrt-rtx 1.7.1")
    assert "runtime-nvidia-geforce-rtx-4090.cache" in {path.name for path in files}


def test_the_cache_is_the_users_own_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert EngineCache().root == Path("/somewhere/dfm-engine/engines")


def test_a_folder_that_cannot_be_written_is_an_error_with_a_way_out(
    tmp_path: Path, build: FakeBuild
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentUnfit, match="XDG_CACHE_HOME"):
        EngineCache(tmp_path / "file").get(KEY, build)


def test_a_damaged_engine_that_cannot_be_moved_is_said_of_the_cache(
    cache: EngineCache, build: FakeBuild
) -> None:
    engine = cache.get(KEY, build)
    engine.path.write_bytes(b"other")
    (cache.root / "quarantine").write_text("")  # a file where its folder has to be
    with pytest.raises(EnvironmentUnfit, match=r"writing the cache .*quarantine.*XDG_CACHE_HOME"):
        cache.get(KEY, build)
