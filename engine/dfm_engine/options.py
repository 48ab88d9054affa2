"""What a build is asked for, and the clips that it was given."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dfm_engine.clip import DrivingClip, SourceClip
from dfm_engine.errors import UsageError
from dfm_engine.recipe import BuildRecipe
from dfm_engine.screen import ExternalVerdicts
from dfm_engine.sources import Listing, list_driving, list_sources


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """What a build is asked for, beyond the networks.

    Attributes:
        recipe: every decision.
        real: folder of real clips.
        driving: folder of driving clips, or a CSV of them.
        out: the data set.
        limit: fakes to make in all, dealt round-robin over actions; None: what the recipe says.
        reader, identity_csv, identity_regex: how real clips are read; see `sources.list_sources`.
        verdicts: CSV of verdicts from elsewhere.
        banner: a remark for the report, such as that the weights are random.
    """

    recipe: BuildRecipe
    real: Path
    driving: Path
    out: Path
    limit: int | None = None
    reader: str = "auto"
    identity_csv: Path | None = None
    identity_regex: str | None = None
    verdicts: ExternalVerdicts | None = None
    banner: str = ""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit must be at least 1, found {self.limit}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """The listed clips and what was found when they were looked at."""

    sources: Listing[SourceClip]
    driving: Listing[DrivingClip]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Of both lists."""
        return (*self.sources.warnings, *self.driving.warnings)


def list_inputs(options: BuildOptions) -> Inputs:
    """List the clips of a build.

    Raises:
        UsageError: a folder is absent, empty or unusable.
    """
    sources = list_sources(
        options.real,
        reader=options.reader,
        identity_csv=options.identity_csv,
        identity_regex=options.identity_regex,
        allow_stills=options.recipe.sources.allow_stills,
    )
    return Inputs(sources=sources, driving=list_driving(options.driving))


def folder_of(path: Path) -> Path:
    """The folder that listed paths lie below: the path itself, or that of a table."""
    resolved = path.absolute()
    return resolved if resolved.is_dir() else resolved.parent
