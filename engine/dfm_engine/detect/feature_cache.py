"""Features of a frozen backbone, computed once and kept in the run's folder.

With batch norm in evaluation mode and no augmentation a frame has one feature vector, whatever the
epoch; the rest of a training is then a matter of seconds. Kept as float16, chunk by chunk, so that
a run killed meanwhile goes on where it was.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dfm_engine.durable import write_durably
from dfm_engine.store.frames import Store
from dfm_engine.store.loader import Loader

log = logging.getLogger(__name__)

CHUNK_ROWS = 1024
IntArray = NDArray[np.int64]


class FeatureLoader:
    """A `Loader` that gives the features of rows in place of their frames."""

    mode: Literal["memmap"] = "memmap"

    def __init__(
        self, store: Store, rows: IntArray, features: NDArray[np.float16], device: torch.device
    ) -> None:
        """Hold features, (R, D), of ascending rows (R,)."""
        self.store, self.device = store, device
        self._rows = rows
        self._features = torch.from_numpy(features)

    def gather(self, rows: IntArray) -> Tensor:
        """Features of rows, float32 (B, D) on the device."""
        place = np.searchsorted(self._rows, rows)
        return self._features[torch.from_numpy(place)].float().to(self.device)

    def follow(self, coming: Iterable[IntArray]) -> None:
        """All is here."""

    def close(self) -> None:
        """Give the memory back."""
        self._features = self._features[:0].clone()


def cached_features(
    folder: Path,
    rows: IntArray,
    embed: Callable[[Tensor], Tensor],
    loader: Loader,
    *,
    batch_size: int = 64,
) -> FeatureLoader:
    """Features of rows, read where they are there already, else computed and kept.

    Args:
        folder: of this run; its rows, weights and store are those of the run.
        rows: (R,) ascending.
        embed: stored frames (B, ...) on the device to features (B, D).
        loader: gives the frames.
        batch_size: frames at once.
    """
    parts: list[NDArray[np.float16]] = []
    for first in range(0, len(rows), CHUNK_ROWS):
        mine = rows[first : first + CHUNK_ROWS]
        path = folder / f"{first // CHUNK_ROWS:05d}.npy"
        if not path.is_file():
            values = [
                embed(loader.gather(mine[at : at + batch_size])).half().cpu()
                for at in range(0, len(mine), batch_size)
            ]
            buffer = io.BytesIO()
            np.save(buffer, torch.cat(values).numpy())
            write_durably(path, buffer.getbuffer())
            log.info("train  features %d/%d frames", first + len(mine), len(rows))
        parts.append(np.load(path))
    return FeatureLoader(loader.store, rows, np.concatenate(parts), loader.device)
