"""Builds in this process: the networks are loaded once, and no clip is framed twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dfm_engine.backends import TorchRunner
from dfm_engine.build import BuildOptions, BuildSummary, build_dataset
from dfm_engine.clip import DrivingClip, FramedClip, SourceClip
from dfm_engine.faces.framing import frame_clip
from dfm_engine.faces.mtcnn import Mtcnn
from dfm_engine.framing_workers import FramingWorkers
from dfm_engine.interrupts import StopRequest
from dfm_engine.lanes import Lanes
from dfm_engine.recipe import BuildRecipe


@dataclass(frozen=True)
class Workbench:
    """What a build needs; `clips` holds `real/` and `driving/`."""

    runner: TorchRunner
    detector: Mtcnn
    recipe: BuildRecipe
    clips: Path
    framed: dict[Any, FramedClip] = field(default_factory=dict)

    def build(
        self,
        out: Path,
        *,
        real: Path | None = None,
        driving: Path | None = None,
        stop: StopRequest | None = None,
        lanes: Lanes | None = None,
        framing: FramingWorkers | None = None,
        **options: Any,
    ) -> BuildSummary:
        return build_dataset(
            BuildOptions(
                recipe=options.pop("recipe", self.recipe),
                real=real or self.clips / "real",
                driving=driving or self.clips / "driving",
                out=out,
                **options,
            ),
            runner=self.runner,
            detector=self.detector,
            framer=self.framer,
            workers=1,
            batch_size=8,
            threads=1,
            lanes=lanes,
            framing=framing,
            stop=stop,
            progress=False,
        )

    def framer(self, clip: SourceClip | DrivingClip) -> FramedClip:
        key = clip.sha256, isinstance(clip, SourceClip)
        if key not in self.framed:
            self.framed[key] = frame_clip(
                clip.path,
                detector=self.detector,
                size=self.runner.frame_size[0],
                limits=self.recipe.limits,
                faces=self.recipe.faces,
                clips=self.recipe.clips,
                sources=self.recipe.sources if isinstance(clip, SourceClip) else None,
            )
        return self.framed[key]


class Hook(StopRequest):
    """A stop request that is asked after every prepared clip and wave; runs `act` the n-th time."""

    def __init__(self, count: int, act: Callable[[], object]) -> None:
        super().__init__()
        self._count, self._act = count, act

    def raise_if_set(self) -> None:
        self._count -= 1
        if self._count == 0:
            self._act()
        super().raise_if_set()


def contents(out: Path) -> Mapping[str, bytes]:
    """Everything that must not depend on how often a run was stopped."""
    kept = [*(out / "data").rglob("*.mp4"), *out.glob("*.parquet"), *(out / "jobs").glob("*.json")]
    return {str(path.relative_to(out)): path.read_bytes() for path in kept}
