"""A small set of procedural clips, and a FOMM small enough to animate them in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dfm_engine.actions import Action

if TYPE_CHECKING:
    from dfmtest_build import Workbench

TINY = """
model_params:
  common_params: {num_kp: 4, num_channels: 3, estimate_jacobian: true}
  kp_detector_params: {temperature: 0.1, block_expansion: 8, max_features: 32,
    scale_factor: 0.25, num_blocks: 2}
  generator_params: {block_expansion: 8, max_features: 32, num_down_blocks: 1,
    num_bottleneck_blocks: 1, estimate_occlusion_map: true,
    dense_motion_params: {block_expansion: 8, max_features: 32, num_blocks: 2, scale_factor: 0.25}}
dataset_params: {frame_shape: [64, 64, 3]}
"""

RECIPE = """
kind = "build"
name = "test"
description = "everything through every stage, a few frames each"
[clips]
max_frames = 9
[faces]
every_n = 8
[sources]
require_frontal = false
[screen]
mode = "record"
every_n = 4
[plan]
per_action = 0
fakes_per_source = 0
max_quarantine_share = 1.0
"""


@pytest.fixture(scope="session")
def tiny_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def tiny_256_yaml(tiny_yaml: Path) -> Path:
    """The same network for larger frames, as large as those of the published weights."""
    path = tiny_yaml.with_name("tiny-256.yaml")
    path.write_text(TINY.replace("[64, 64, 3]", "[256, 256, 3]"))
    return path


@pytest.fixture(scope="session")
def test_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "test.toml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`driving/<action>/` with two actions by one driver, `real/<identity>/` with three people."""
    from dfm_engine.synthetic import DemoSetSettings, write_demo_set

    folder = tmp_path_factory.mktemp("clips")
    settings = DemoSetSettings(
        drivers=(1,),
        sources=(1000, 1001, 1002),
        driving_frames=16,
        real_frames=18,
        size=128,
        actions=(Action.NOD, Action.OPEN_MOUTH),
    )
    write_demo_set(folder, settings)
    return folder


@pytest.fixture(scope="session")
def workbench(clips: Path, tiny_yaml: Path, test_recipe: Path) -> Workbench:
    from dfmtest_build import Workbench

    from dfm_engine import fomm
    from dfm_engine.backends import TorchRunner
    from dfm_engine.faces.mtcnn import Mtcnn
    from dfm_engine.recipe import BuildRecipe, load_recipe

    return Workbench(
        runner=TorchRunner(fomm.initialise(tiny_yaml, seed=0)),
        detector=Mtcnn.load(),
        recipe=load_recipe(test_recipe, BuildRecipe),
        clips=clips,
    )


@pytest.fixture(scope="session")
def whole(workbench: Workbench, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of all pairs of `clips`, built without trouble: 6 fakes, 3 reals."""
    out = tmp_path_factory.mktemp("whole") / "set"
    assert workbench.build(out).made == 9
    return out
