"""The shipped weights by ONNX Runtime: the same frames as by torch, and builds that know which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dfm_engine.actions import Action
from dfm_engine.animate import AnimationJob, animate_jobs, prepare_driving, prepare_source
from dfm_engine.backends import Runner, TorchRunner
from dfm_engine.build import BuildOptions, build_dataset
from dfm_engine.errors import UsageError
from dfm_engine.faces.framing import frame_clip
from dfm_engine.faces.mtcnn import Mtcnn
from dfm_engine.fomm.transfer import transfer
from dfm_engine.machinery import load_fomm
from dfm_engine.manifest import read_manifest
from dfm_engine.recipe import BuildRecipe, Clips, Plan, Screen, Sources
from dfm_engine.synthetic import DemoSetSettings, Identity, action_states, render, write_demo_set
from dfm_export.models import Opening, open_fomm_runner
from dfm_export.provide import provide_fomm

pytestmark = pytest.mark.slow

FRAMES = 9


def animate(runner: Runner, action: Action) -> np.ndarray:
    """One drawn person performs what another did."""
    states = action_states(action, 2 * FRAMES, 3)[: 2 * FRAMES : 2]
    size = runner.frame_size[0]
    source = render([Identity.draw(41_000)], states[:1], size).frames.numpy()
    driving = render([Identity.draw(42_000)], states, size).frames.numpy()
    features, kp_source = prepare_source(source[0], runner=runner)
    kp = prepare_driving(driving, runner=runner, batch_size=4)
    kp_driving = transfer(kp_source, kp, kp[0], mode="rel_adapt")
    job = AnimationJob(key=0, source=features, kp_source=kp_source, kp_driving=kp_driving)
    ((_, frames, _),) = animate_jobs([job], runner=runner, batch_size=4)
    return frames


@pytest.mark.parametrize("action", [Action.YAW, Action.SURPRISE])
def test_the_shipped_weights_give_the_same_frames_by_onnxruntime(
    exports: Any, action: Action
) -> None:
    """Through keypoints, source and animate, each fed with what its own backend made before."""
    ort = open_fomm_runner(exports("demo"), Opening(backend="onnxruntime"))
    wanted = animate(TorchRunner(load_fomm("demo", None)), action)
    apart = np.abs(animate(ort, action).astype(int) - wanted)
    assert np.percentile(apart, 99.9) <= 1
    assert apart.max() <= 2
    assert np.abs(wanted[0].astype(int) - wanted[FRAMES // 2]).max() > 20  # and it moves


class Bench:
    """A build of drawn clips with a small model."""

    def __init__(self, folder: Path) -> None:
        self.clips = folder / "clips"
        self.detector = Mtcnn.load()
        settings = DemoSetSettings(
            drivers=(1,),
            sources=(1000, 1001),
            driving_frames=16,
            real_frames=18,
            size=128,
            actions=(Action.NOD,),
        )
        write_demo_set(self.clips, settings)
        self.recipe = BuildRecipe(
            name="test",
            clips=Clips(max_frames=FRAMES),
            sources=Sources(require_frontal=False),
            plan=Plan(per_action=2, fakes_per_source=1, max_quarantine_share=1.0),
            screen=Screen(mode="record"),
        )

    def build(self, out: Path, runner: Runner) -> list[dict[str, Any]]:
        def frame(clip: Any) -> Any:
            return frame_clip(
                clip.path,
                detector=self.detector,
                size=runner.frame_size[0],
                limits=self.recipe.limits,
                faces=self.recipe.faces,
                clips=self.recipe.clips,
                sources=None if hasattr(clip, "action") else self.recipe.sources,
            )

        build_dataset(
            BuildOptions(
                recipe=self.recipe,
                real=self.clips / "real",
                driving=self.clips / "driving",
                out=out,
            ),
            runner=runner,
            detector=self.detector,
            framer=frame,
            workers=1,
            batch_size=4,
            threads=torch.get_num_threads(),
            progress=False,
        )
        return read_manifest(out / "manifest.parquet")


def test_a_build_by_onnxruntime_is_a_build_and_is_not_resumed_by_torch(
    exports: Any, tmp_path: Path
) -> None:
    artifact = exports("small")
    from dfmtest_fomm import make_fomm, small_config

    fomm = make_fomm(small_config(num_kp=5), seed=3)
    assert artifact.weights_sha256 == fomm.weights_sha256
    bench = Bench(tmp_path)
    ort = provide_fomm(
        fomm, backend="onnxruntime", device="cpu", batch_size=4, exported=artifact.path
    )
    assert ort is not None
    rows = bench.build(tmp_path / "ort", ort)
    wanted = bench.build(tmp_path / "torch", TorchRunner(fomm))
    kept = [(row["clip_id"], row["quality"], row["frames"], row["label"]) for row in rows]
    assert kept == [(r["clip_id"], r["quality"], r["frames"], r["label"]) for r in wanted]
    assert sum(row["label"] == "fake" for row in rows) == 6
    before = {path: path.read_bytes() for path in (tmp_path / "ort" / "data").rglob("*.mp4")}
    assert bench.build(tmp_path / "ort", ort) == rows  # resumed: nothing to do
    again = bench.build(tmp_path / "again", ort)
    assert [row["sha256"] for row in again] == [row["sha256"] for row in rows]
    with pytest.raises(UsageError, match=rf"runner was '{ort.name}', is now 'torch-cpu-float32'"):
        bench.build(tmp_path / "ort", TorchRunner(fomm))
    assert {path: path.read_bytes() for path in before} == before
