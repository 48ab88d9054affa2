"""What a reader hands on: the clips, and all that it left out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from dfm_engine.clip import DrivingClip, SourceClip
from dfm_engine.errors import MediaError

C = TypeVar("C", SourceClip, DrivingClip)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing(Generic[C]):
    """What a folder or a table of clips holds.

    Attributes:
        clips: in natural order of their paths.
        reader: which one read it: see `sources.READERS`; `csv` for a driving table.
        warnings: sentences for a person.
        refused: files that cannot be clips, each with kind and reason; rows of the quarantine.
        ignored: how many files are no media.
        stills: how many pictures were left out because stills are not allowed.
        duplicates: (left out, kept) paths of equal content.
    """

    clips: tuple[C, ...]
    reader: str
    warnings: tuple[str, ...] = ()
    refused: tuple[MediaError, ...] = ()
    ignored: int = 0
    stills: int = 0
    duplicates: tuple[tuple[Path, Path], ...] = ()
