"""What this machine and this Python environment hold, without importing anything heavy.

Limits of a container (cgroup) and of the process (CPU affinity) count, not only the hardware.
Versions are read from package metadata and from files of the packages.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from dfm_engine.nvidia import NvidiaFacts, read_nvidia

PACKAGES = (
    *("torch", "torchvision", "triton", "numpy", "av", "onnxruntime", "onnxruntime-gpu"),
    "openvino",
    *("nvidia-dali-cuda120", "nvidia-dali-cuda130", "torch-tensorrt"),
    *("tensorrt-cu12", "tensorrt-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13", "tensorrt-rtx"),
)
DECODERS = ("h264", "hevc", "vp9", "av1")


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    """Everything `doctor` judges.

    Attributes:
        python: (major, minor) of the interpreter.
        system: operating system and processor, for reading.
        packages: version of each of `PACKAGES` that is installed.
        unmet: requirements of this project that are absent or too old, as sentences; None where
            the project runs from its source without being installed.
        torch_cuda: CUDA that torch was built for, None for a CPU build.
        onnxruntime_cuda: the same of ONNX Runtime.
        onnxruntime_providers: execution providers in its package.
        has_x264: PyAV can encode with libx264; None where PyAV is absent.
        missing_decoders: of `DECODERS`, what PyAV cannot decode.
        media_error: why PyAV does not import.
        cores: usable ones, after affinity and container quota.
        memory_bytes, memory_free_bytes: within the container's limit.
        disk_free_bytes: in the folder asked about.
        shm_bytes: free in /dev/shm; None where it cannot be written.
        temp_error: why no file can be made in the temporary folder.
        compiler: path of g++ or clang++.
        driver_capabilities: NVIDIA_DRIVER_CAPABILITIES, None where unset.
        nvidia: see `NvidiaFacts`.
    """

    python: tuple[int, int]
    system: str
    packages: dict[str, str]
    unmet: tuple[str, ...] | None = ()
    torch_cuda: tuple[int, int] | None
    onnxruntime_cuda: tuple[int, int] | None
    onnxruntime_providers: tuple[str, ...]
    has_x264: bool | None
    missing_decoders: tuple[str, ...] = ()
    media_error: str | None = None
    cores: float
    memory_bytes: int
    memory_free_bytes: int
    disk_free_bytes: int
    shm_bytes: int | None
    temp_error: str | None = None
    compiler: str | None
    driver_capabilities: str | None = None
    nvidia: NvidiaFacts = field(default_factory=NvidiaFacts)


def read_machine(folder: Path) -> MachineFacts:
    """Look at this machine; `folder` is where disk space is asked for."""
    has_x264, missing_decoders, media_error = _media()
    memory_bytes, memory_free_bytes = read_memory()
    return MachineFacts(
        python=sys.version_info[:2],
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        packages=installed(PACKAGES),
        unmet=unmet_requirements("dfm-engine"),
        torch_cuda=_version_in_file("torch", "version.py", "cuda"),
        onnxruntime_cuda=_version_in_file(
            "onnxruntime", "capi/build_and_package_info.py", "cuda_version"
        ),
        onnxruntime_providers=_onnxruntime_providers(),
        has_x264=has_x264,
        missing_decoders=missing_decoders,
        media_error=media_error,
        cores=read_cores(),
        memory_bytes=memory_bytes,
        memory_free_bytes=memory_free_bytes,
        disk_free_bytes=shutil.disk_usage(_existing(folder)).free,
        shm_bytes=_shm_bytes(),
        temp_error=_temp_error(),
        compiler=shutil.which("g++") or shutil.which("clang++"),
        driver_capabilities=os.environ.get("NVIDIA_DRIVER_CAPABILITIES"),
        nvidia=read_nvidia(),
    )


def cache_folder() -> Path:
    """Where this user's caches go: $XDG_CACHE_HOME/dfm-engine, or ~/.cache/dfm-engine."""
    root = os.environ.get("XDG_CACHE_HOME")
    return Path(root or os.path.expanduser("~/.cache")) / "dfm-engine"


def installed(names: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that are installed."""
    found: dict[str, str] = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def unmet_requirements(distribution: str) -> tuple[str, ...] | None:
    """Requirements that this environment does not meet, extras aside; None if not installed."""
    try:
        requirements = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return None
    problems: list[str] = []
    for requirement in requirements:
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        if ";" in requirement:
            continue
        version = installed([name]).get(name)
        if version is None:
            problems.append(f"{name} is absent")
        for lowest in re.findall(r">=\s*([0-9.]+)", requirement):
            if version is not None and version_tuple(version) < version_tuple(lowest):
                problems.append(f"{name} {version} is older than {lowest}")
    return tuple(problems)


def version_tuple(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: `2.14.1+cu130` is (2, 14, 1)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in match.group().split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def read_cores(
    *, cgroup: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> float:
    """Cores that this process may use: CPU affinity, capped by the container's quota."""
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = float(len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1)
    for folder in _cgroup_folders(cgroup, own, "cpu"):
        quota, period = 0.0, 0.0
        if text := _read(folder / "cpu.max"):
            words = text.split()
            quota, period = (0.0 if words[0] == "max" else float(words[0])), float(words[1])
        elif (text := _read(folder / "cpu.cfs_quota_us")) and float(text) > 0:
            quota, period = float(text), float(_read(folder / "cpu.cfs_period_us") or 100_000)
        if quota and period:
            cores = min(cores, quota / period)
    return cores


def read_memory(
    *,
    cgroup: Path = Path("/sys/fs/cgroup"),
    own: Path = Path("/proc/self/cgroup"),
    meminfo: Path = Path("/proc/meminfo"),
) -> tuple[int, int]:
    """Total and available bytes, within the container's limit; file cache counts as available."""
    table = dict(re.findall(r"^(\w+):\s+(\d+) kB", _read(meminfo) or "", re.MULTILINE))
    total, free = (int(table.get(key, 0)) * 1024 for key in ("MemTotal", "MemAvailable"))
    for folder in _cgroup_folders(cgroup, own, "memory"):
        limit = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes") or "max"
        used = _read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes") or "0"
        if limit != "max" and 0 < int(limit) < total:
            statistics = _read(folder / "memory.stat") or ""
            cache = re.search(r"^(?:total_)?inactive_file (\d+)$", statistics, re.MULTILINE)
            available = int(limit) - int(used) + (int(cache.group(1)) if cache else 0)
            total, free = int(limit), min(free, max(0, available))
    return total, free


def _cgroup_folders(cgroup: Path, own: Path, controller: str) -> list[Path]:
    """The folders of this process's own group and of all above it, in either cgroup version."""
    folders: list[Path] = []
    for line in (_read(own) or "").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top = cgroup
        elif controller in controllers.split(","):
            top = cgroup / controller
        else:
            continue
        below = top / path.lstrip("/")
        folders += [folder for folder in (below, *below.parents) if folder.is_relative_to(top)]
    return folders


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def _media() -> tuple[bool | None, tuple[str, ...], str | None]:
    """(x264 in PyAV, decoders missing there, why PyAV does not import)."""
    try:
        from av.codec import Codec
    except ImportError as error:
        return None, (), str(error)

    def has(name: str, mode: str) -> bool:
        try:
            Codec(name, mode)  # pyright: ignore[reportArgumentType]
        except ValueError:  # UnknownCodecError
            return False
        return True

    return has("libx264", "w"), tuple(name for name in DECODERS if not has(name, "r")), None


def _package_folder(module: str) -> Path | None:
    """Where a top-level package lies; finding it imports nothing."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin).parent if spec and spec.origin else None


def _version_in_file(module: str, file: str, name: str) -> tuple[int, int] | None:
    """`name = '13.0'` in a Python file of a package, as (major, minor)."""
    folder = _package_folder(module)
    text = _read(folder / file) if folder else None
    match = re.search(rf"^{name}\b[^=]*=\s*['\"](\d+)\.(\d+)", text or "", re.MULTILINE)
    return (int(match.group(1)), int(match.group(2))) if match else None


def _onnxruntime_providers() -> tuple[str, ...]:
    """Execution providers by their libraries in the package; the CPU one is always in."""
    folder = _package_folder("onnxruntime")
    if folder is None:
        return ()
    libraries = (folder / "capi").glob("*onnxruntime_providers_*")
    names = {path.name.split("onnxruntime_providers_")[1].split(".")[0] for path in libraries}
    return (*sorted(names - {"shared"}), "cpu")


def _existing(folder: Path) -> Path:
    folder = Path(os.path.abspath(folder))
    return next(path for path in (folder, *folder.parents) if path.exists())


def _shm_bytes() -> int | None:
    shm = Path("/dev/shm")
    if not os.access(shm, os.W_OK):
        return None
    return shutil.disk_usage(shm).free


def _temp_error() -> str | None:
    try:
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"\0" * 4096)
            file.flush()
    except OSError as error:
        return str(error)
    return None
