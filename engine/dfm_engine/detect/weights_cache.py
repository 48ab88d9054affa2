"""Where the ecosystem keeps pretrained weights on this machine, and which file each detector wants.

Nothing is downloaded. What is absent is an error that names the file, the project that publishes
it, and the folder to put it in.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from dfm_engine.errors import WeightsError


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One file that would do.

    Attributes:
        file: its name.
        project: who publishes it.
        keeper: whose cache it lies in: "torch" (torch.hub), "keras", or "hub" (Hugging Face).
        repo: of the Hugging Face hub.
    """

    file: str
    project: str
    keeper: str = "torch"
    repo: str = ""

    def folder(self) -> Path:
        """Where the keeper has its files."""
        if self.keeper == "keras":
            home = os.environ.get("KERAS_HOME") or Path.home() / ".keras"
            return Path(home) / "models"
        if self.keeper == "hub":
            from huggingface_hub import constants

            return Path(constants.HF_HUB_CACHE)
        return Path(torch.hub.get_dir()) / "checkpoints"

    def find(self) -> Path | None:
        """The file, if it is there."""
        if self.keeper == "hub":
            from huggingface_hub import try_to_load_from_cache

            found = try_to_load_from_cache(self.repo, self.file, cache_dir=self.folder())
            return Path(found) if isinstance(found, str) else None
        path = self.folder() / self.file
        return path if path.is_file() else None

    def __str__(self) -> str:
        if self.keeper == "hub":
            return f"{self.file} of {self.repo} ({self.project}) in {self.folder()}"
        return f"{self.folder() / self.file} ({self.project})"


def find_cached(name: str, candidates: tuple[Published, ...]) -> Path:
    """The first of the files that is on this machine.

    Raises:
        WeightsError: none is.
    """
    for candidate in candidates:
        path = candidate.find()
        if path is not None:
            return path
    if not candidates:
        raise WeightsError(
            f"{name}: nobody publishes weights for it; train it with --weights none, or give a file"
        )
    wanted = "\n  ".join(str(candidate) for candidate in candidates)
    raise WeightsError(
        f"{name}: no pretrained weights on this machine, and nothing is downloaded. Get one of "
        f"these files and put it there, or give its path as --weights, or none:\n  {wanted}"
    )


def of_timm(architecture: str) -> tuple[Published, ...]:
    """The files of a timm model by `name.tag`; without a tag, timm's default one."""
    from dfm_engine.detect.timm_net import timm_config

    config = timm_config(architecture)
    project = f"timm, tag {config.tag}"
    found: list[Published] = []
    if config.url:
        found.append(Published(file=config.url.rsplit("/", 1)[1], project=project))
    repo = config.hf_hub_id or (f"timm/{config.architecture}.{config.tag}" if config.tag else "")
    if repo:
        found += [
            Published(file=file, project=project, keeper="hub", repo=repo)
            for file in ("model.safetensors", "pytorch_model.bin")
        ]
    return tuple(found)


def of_torchvision(file: str, timm_tag: str) -> tuple[Published, ...]:
    """The IMAGENET1K_V1 file of torchvision, or timm's copy of it."""
    mine = Published(file=file, project="torchvision, IMAGENET1K_V1")
    return (mine, *(p for p in of_timm(timm_tag) if p.keeper == "hub"))


def of_mesonet(stem: str) -> tuple[Published, ...]:
    """DariusAf/MesoNet's files; the Deepfakes one first."""
    return tuple(
        Published(file=f"{stem}_{data}{suffix}", project="DariusAf/MesoNet", keeper="keras")
        for data in ("DF", "F2F")
        for suffix in (".h5", "")
    )
