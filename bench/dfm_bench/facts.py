"""On what a benchmark ran: processor, GPU, versions, commit, date, and how busy the machine was.

Nothing here names the machine, its user or a path, so that a report can be published as it is.
"""

from __future__ import annotations

import datetime
import os
import platform
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dfm_engine.machine import installed, read_cores, read_memory
from dfm_engine.naming import VERSION
from dfm_engine.nvidia import read_nvidia

__all__ = ["Facts", "read_facts"]

PACKAGES = ("torch", "av", "numpy", "onnxruntime-gpu", "openvino")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a number depends on besides the code that it measures.

    Attributes:
        date: ISO.
        cpu: the processor's model name.
        cores: usable by this process.
        memory_gib: likewise.
        gpus: names, empty without one.
        driver: of NVIDIA, or None.
        system: operating system and instruction set.
        versions: of dfm-engine, Python and `PACKAGES`.
        commit: of the checkout, with `+changes` if files differ from it; None outside of one.
        load: processes that wanted a core in the minute before the start; above 0 on a CPU the
            numbers are too low.
    """

    date: str
    cpu: str
    cores: float
    memory_gib: float
    gpus: tuple[str, ...]
    driver: str | None
    system: str
    versions: dict[str, str]
    commit: str | None
    load: float

    def sentence(self) -> str:
        """The facts that belong under a table."""
        load = f", load {self.load:.1f} at the start" if self.load >= 0.5 else ""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        gpus = "".join(f", {name}" for name in self.gpus)
        driver = f" (driver {self.driver})" if self.driver and self.gpus else ""
        commit = f", commit {self.commit}" if self.commit else ""
        return (
            f"{self.date}, {self.cores:g} cores of {self.cpu}{gpus}{driver}, {versions}"
            f"{commit}{load}"
        )

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return {**asdict(self), "gpus": list(self.gpus)}


def read_facts() -> Facts:
    """Look around, before the first measurement."""
    nvidia = read_nvidia()
    return Facts(
        date=datetime.date.today().isoformat(),
        cpu=_cpu_model(),
        cores=read_cores(),
        memory_gib=round(read_memory()[0] / 2**30, 1),
        gpus=tuple(gpu.name for gpu in nvidia.gpus),
        driver=nvidia.driver,
        system=f"{platform.system()} {platform.machine()}",
        versions={
            "dfm-engine": VERSION,
            "python": platform.python_version(),
            **installed(PACKAGES),
        },
        commit=_commit(Path(__file__).parent),
        load=round(os.getloadavg()[0], 2),
    )


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1).strip() if match else platform.processor() or "unknown"


def _commit(folder: Path) -> str | None:
    """Of the checkout that tracks this file; a site-packages folder inside of one does not."""
    git = shutil.which("git")
    if git is None:
        return None

    def ask(*words: str) -> str | None:
        done = subprocess.run(
            [git, "-C", str(folder), *words], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else None

    if ask("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None
    head = ask("rev-parse", "--short=12", "HEAD")
    return f"{head}+changes" if ask("status", "--porcelain", "--untracked-files=no") else head
