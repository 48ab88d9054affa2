"""Say what this machine can do, what does not fit together, and what to do about it.

`machine` and `nvidia` find facts; here every fact gets a verdict and a hint. Nothing heavy is
imported (torch least of all), so the command answers in under a second, also on a broken install.

A failure is only what makes work on a CPU impossible, or a missing GPU that was required.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dfm_engine.errors import EnvironmentUnfit
from dfm_engine.machine import MachineFacts, read_machine, version_tuple
from dfm_engine.nvidia import CODECS

if TYPE_CHECKING:
    from rich.table import Table

GIB = 1 << 30
PYTHONS = ((3, 11), (3, 12))
RTX_CHIPS = ((7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1))  # what TensorRT-RTX 1.7 knows
DALI_CODECS = ("h264", "hevc")  # what store.routing gives NVDEC
OLDEST_COMPUTE = (7, 5)  # Turing: what CUDA 13 still compiles for


class Verdict(StrEnum):
    """`NOTE` is worth knowing and needs no action."""

    PASS = "pass"
    NOTE = "note"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the report: `found` is a fact, `hint` what to do about it."""

    name: str
    verdict: Verdict
    found: str
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorReport:
    """All checks, and the facts behind them."""

    checks: tuple[Check, ...]
    facts: MachineFacts

    @property
    def exit_code(self) -> int:
        """4 if a check failed, else 0."""
        failed = any(check.verdict is Verdict.FAIL for check in self.checks)
        return EnvironmentUnfit.exit_code if failed else 0

    def to_json(self) -> dict[str, Any]:
        """For programs; facts keep their names, versions are lists of numbers."""
        return {
            "schema_version": 1,
            "exit_code": self.exit_code,
            "checks": [asdict(check) for check in self.checks],
            "facts": asdict(self.facts),
        }

    def table(self) -> Table:
        """For people."""
        from rich.table import Table
        from rich.text import Text

        styles = {"pass": "green", "note": "cyan", "warn": "yellow", "fail": "bold red"}
        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for check in self.checks:
            found = Text(check.found)
            if check.hint and check.verdict is not Verdict.PASS:
                found.append(f"\n-> {check.hint}", style="dim")
            word = Text(check.verdict.upper(), style=styles[check.verdict])
            table.add_row(word, check.name, found)
        return table

    def print(self) -> None:
        """Write the table to stderr."""
        from rich.console import Console

        Console(stderr=True).print(self.table())


def run_doctor(require_gpu: bool = False, *, folder: Path = Path()) -> DoctorReport:
    """Look at this machine and judge it.

    Args:
        require_gpu: a machine without a GPU that torch can use fails.
        folder: where results will be written; its free space is judged.
    """
    facts = read_machine(folder)
    return DoctorReport(checks=judge(facts, require_gpu=require_gpu), facts=facts)


def judge(facts: MachineFacts, *, require_gpu: bool = False) -> tuple[Check, ...]:
    """The verdict on every fact, software first, then the machine, then the GPU."""
    return (
        *_software(facts),
        *_machine(facts),
        *_gpu(facts, require_gpu),
        *_fit(facts),
    )


def _check(name: str, verdict: Verdict, found: str, hint: str = "") -> Check:
    return Check(name=name, verdict=verdict, found=found, hint=hint)


def _software(facts: MachineFacts) -> Iterator[Check]:
    python = ".".join(map(str, facts.python))
    yield _check(
        "Python",
        Verdict.PASS if facts.python in PYTHONS else Verdict.WARN,
        f"{python} on {facts.system}",
        "tested with Python 3.11 and 3.12",
    )
    hint = "run `make setup`, or install dfm-engine again"
    if facts.unmet is None:
        yield _check("Packages", Verdict.NOTE, "not installed, so not checked", hint)
    elif facts.unmet:
        yield _check("Packages", Verdict.FAIL, "; ".join(facts.unmet), hint)
    else:
        yield _check("Packages", Verdict.PASS, "everything that a CPU run needs")
    if facts.media_error or facts.has_x264 is None:
        why = facts.media_error or "PyAV is absent"
        yield _check("Video", Verdict.FAIL, why, "install `av`; no clip can be read or written")
    elif not facts.has_x264:
        hint = "install PyAV from PyPI; clips are defined by libx264, nothing takes its place"
        yield _check("Video", Verdict.FAIL, "PyAV has no libx264", hint)
    elif facts.missing_decoders:
        found = f"libx264, but no decoder for {', '.join(facts.missing_decoders)}"
        hint = "clips in these codecs will be refused; install PyAV from PyPI"
        yield _check("Video", Verdict.WARN, found, hint)
    else:
        found = f"PyAV {facts.packages.get('av', '?')}: libx264, decoders for all inputs"
        yield _check("Video", Verdict.PASS, found)
    yield _check(
        "Compiler",
        Verdict.PASS if facts.compiler else Verdict.NOTE,
        facts.compiler or "no g++ or clang++",
        "torch.compile stays off on the CPU; nothing else needs a compiler",
    )


def _machine(facts: MachineFacts) -> Iterator[Check]:
    yield _check(
        "Cores",
        Verdict.PASS if facts.cores >= 2 else Verdict.WARN,
        f"{facts.cores:g} usable",
        "encoding shares one core with everything else; give the container more",
    )
    free = facts.memory_free_bytes / GIB
    yield _check(
        "Memory",
        Verdict.FAIL if free < 1 else Verdict.WARN if free < 4 else Verdict.PASS,
        f"{free:.1f} of {facts.memory_bytes / GIB:.1f} GiB available",
        "a build takes about 4 GiB; close something, or raise the container's limit",
    )
    disk = facts.disk_free_bytes / GIB
    yield _check(
        "Disk",
        Verdict.WARN if disk < 10 else Verdict.PASS,
        f"{disk:.1f} GiB free",
        "a clip in three qualities takes about 5 MB; choose another folder for --out",
    )
    if facts.temp_error:
        yield _check("Temporary files", Verdict.FAIL, facts.temp_error, "point TMPDIR elsewhere")
    shm = facts.shm_bytes
    yield _check(
        "Shared memory",
        Verdict.WARN if shm is None or shm < GIB else Verdict.PASS,
        "/dev/shm cannot be written" if shm is None else f"{shm / GIB:.2f} GiB free in /dev/shm",
        "torch's loader workers need it: start a container with --shm-size=8g or --ipc=host",
    )


def _gpu(facts: MachineFacts, require_gpu: bool) -> Iterator[Check]:
    nvidia = facts.nvidia
    absent = Verdict.FAIL if require_gpu else Verdict.NOTE
    if nvidia.driver_cuda is None:
        why = nvidia.cuda_error or "no NVIDIA driver here"
        yield _check("GPU", absent, why, "everything runs on the CPU, slower")
        return
    served = "CUDA {}.{}".format(*nvidia.driver_cuda)
    driver = f"driver {nvidia.driver or '(version unknown)'}, serves {served}"
    broken = Verdict.FAIL if require_gpu else Verdict.WARN
    problem, hint = _gpu_problem(facts)
    if problem:
        yield _check("GPU", broken, f"{driver}; {problem}", hint)
    else:
        names = "; ".join(
            f"{gpu.name}, {gpu.memory_bytes / GIB:.0f} GiB, compute {{}}.{{}}".format(
                *gpu.compute_capability
            )
            for gpu in nvidia.gpus
        )
        yield _check("GPU", Verdict.PASS, f"{names}; {driver}")
    if not nvidia.gpus:
        return
    if nvidia.nvdec:
        found = f"{max(nvidia.nvdec.values())} decoders: {', '.join(nvidia.nvdec)}"
        if lacking := [codec for codec in CODECS if codec not in nvidia.nvdec]:
            found += f"; {', '.join(lacking)} stays on the CPU"
        yield _check("NVDEC", Verdict.PASS, found)
    else:
        capabilities = facts.driver_capabilities
        hint = "decoding stays on the CPU"
        if capabilities is not None and not {"video", "all"} & set(capabilities.split(",")):
            hint = (
                f"NVIDIA_DRIVER_CAPABILITIES is {capabilities!r} without 'video': start the "
                "container with -e NVIDIA_DRIVER_CAPABILITIES=compute,video,utility"
            )
        yield _check("NVDEC", Verdict.WARN, nvidia.nvdec_error or "not usable", hint)
    yield _check(
        "NVENC",
        Verdict.NOTE,
        ("its library is here" if nvidia.has_nvenc else "absent") + "; never used",
        "clips are defined by libx264, whose bitstream NVENC cannot give",
    )


def _gpu_problem(facts: MachineFacts) -> tuple[str, str]:
    """Why torch could not use the GPU and what to do; blank if it can."""
    nvidia = facts.nvidia
    if not nvidia.gpus:
        return nvidia.cuda_error or "no device", "look at nvidia-smi and CUDA_VISIBLE_DEVICES"
    if facts.torch_cuda is None:
        return "torch is a CPU build", "install the CUDA build of torch"
    if nvidia.driver_cuda and nvidia.driver_cuda[0] < facts.torch_cuda[0]:
        built = "{}.{}".format(*facts.torch_cuda)
        return f"torch needs CUDA {built}", "install a newer driver, or torch for an older CUDA"
    oldest = min(gpu.compute_capability for gpu in nvidia.gpus)
    if oldest < OLDEST_COMPUTE:
        return (
            "a device of compute {}.{} is too old".format(*oldest),
            "hide it with CUDA_VISIBLE_DEVICES",
        )
    return "", ""


def _fit(facts: MachineFacts) -> Iterator[Check]:
    """Versions of the libraries that must agree with one another."""
    packages = facts.packages
    torch = packages.get("torch")
    if torch:
        built = "CUDA {}.{}".format(*facts.torch_cuda) if facts.torch_cuda else "CPU"
        vision = packages.get("torchvision", "absent")
        # torchvision 0.(N + 15) is built against torch 2.N
        fits = _minor(vision) == _minor(torch) + 15
        yield _check(
            "torch",
            Verdict.PASS if fits else Verdict.WARN,
            f"{torch} for {built}, torchvision {vision}, triton {packages.get('triton', 'absent')}",
            "these two are built for one another: install both from one index at one time",
        )
    has_gpu = bool(facts.nvidia.gpus)
    dali = _found(packages, "nvidia-dali")
    tensorrt = _found(packages, "tensorrt-")
    yield _dali(facts, dali)
    yield _optional(
        "TensorRT", tensorrt, has_gpu, "pip install 'dfm-engine[rtx]' or 'dfm-engine[tensorrt]'"
    )
    yield _onnxruntime(facts)
    yield _backends(facts)
    majors = {
        name: major
        for name, major in {
            "torch": facts.torch_cuda[0] if facts.torch_cuda else None,
            "ONNX Runtime": facts.onnxruntime_cuda[0] if facts.onnxruntime_cuda else None,
            **{name: _cuda_of(name) for name in (*dali, *tensorrt)},
        }.items()
        if major is not None
    }
    listed = ", ".join(f"{name} {major}" for name, major in majors.items())
    yield _check(
        "CUDA",
        Verdict.PASS if len(set(majors.values())) <= 1 else Verdict.WARN,
        f"built for: {listed or 'nothing here is built for CUDA'}",
        "one process would load two CUDA versions: install packages of one major version",
    )


def _backends(facts: MachineFacts) -> Check:
    """Which words `--backend` takes here, and why not the others."""
    gpus = facts.nvidia.gpus
    usable = ["torch"] if "torch" in facts.packages else []
    if _found(facts.packages, "onnxruntime"):
        has_cuda = bool(gpus) and "cuda" in facts.onnxruntime_providers
        usable.append(f"onnxruntime ({'cpu, cuda' if has_cuda else 'cpu'})")
    not_here: list[str] = []
    if "openvino" in facts.packages:
        usable.append("openvino (cpu)")
    else:
        not_here.append("openvino is not installed")
    rtx = _found(facts.packages, "tensorrt-rtx")
    data_centre = {n for n in _found(facts.packages, "tensorrt-") if n not in rtx}
    for word, found in (("tensorrt", data_centre), ("tensorrt-rtx", rtx)):
        unknown = [gpu for gpu in gpus if gpu.compute_capability not in RTX_CHIPS]
        if not found:
            not_here.append(f"{word} is not installed")
        elif not gpus:
            does = "builds engines, " if word == "tensorrt-rtx" else ""
            not_here.append(f"{word} {does}runs on a GPU")
        elif word == "tensorrt-rtx" and unknown:
            compute = "{}.{}".format(*unknown[0].compute_capability)
            not_here.append(f"{word} does not know compute {compute}, tensorrt does")
        else:
            usable.append(word)
    return _check(
        "Backends",
        Verdict.PASS if usable else Verdict.WARN,
        "; ".join([", ".join(usable) or "none", *not_here]),
        "run `make setup`, or install dfm-engine again",
    )


def _dali(facts: MachineFacts, found: dict[str, str]) -> Check:
    """Whether `--decode auto` will decode on the GPU, and what keeps it from doing so."""
    nvidia = facts.nvidia
    if not found:
        hint = "pip install 'dfm-engine[gpu]': decoding on the GPU"
        return _check("DALI", Verdict.WARN if nvidia.gpus else Verdict.NOTE, "absent", hint)
    listed = ", ".join(f"{package} {version}" for package, version in found.items())
    if not nvidia.gpus:
        why = nvidia.cuda_error or "CUDA sees no device"
        return _check("DALI", Verdict.NOTE, f"{listed}; decodes nothing here: {why}")
    if not nvidia.nvdec:
        why = nvidia.nvdec_error or "NVDEC is not usable"
        hint = "clips are decoded on the CPU; see NVDEC above"
        return _check("DALI", Verdict.WARN, f"{listed}; decodes nothing here: {why}", hint)
    codecs = ", ".join(codec for codec in nvidia.nvdec if codec in DALI_CODECS)
    if not codecs:
        return _check("DALI", Verdict.WARN, f"{listed}; NVDEC has none of {DALI_CODECS}")
    return _check("DALI", Verdict.PASS, f"{listed}; decodes {codecs} with NVDEC, the rest on CPUs")


def _onnxruntime(facts: MachineFacts) -> Check:
    name = "ONNX Runtime"
    packages = _found(facts.packages, "onnxruntime")
    if not packages:
        return _check(name, Verdict.WARN, "absent", "install onnxruntime-gpu")
    found = ", ".join(f"{package} {version}" for package, version in packages.items())
    if len(packages) > 1:
        hint = "they overwrite one another: uninstall both, then install onnxruntime-gpu"
        return _check(name, Verdict.WARN, found, hint)
    found += f"; providers: {', '.join(facts.onnxruntime_providers)}"
    if facts.nvidia.gpus and "cuda" not in facts.onnxruntime_providers:
        hint = "install onnxruntime-gpu in its place: its CPU provider is the same"
        return _check(name, Verdict.WARN, found, hint)
    return _check(name, Verdict.PASS, found)


def _optional(name: str, found: dict[str, str], has_gpu: bool, hint: str) -> Check:
    if found:
        listed = ", ".join(f"{package} {version}" for package, version in found.items())
        return _check(name, Verdict.PASS, listed)
    return _check(name, Verdict.WARN if has_gpu else Verdict.NOTE, "absent", hint)


def _found(packages: dict[str, str], prefix: str) -> dict[str, str]:
    return {name: version for name, version in packages.items() if name.startswith(prefix)}


def _minor(version: str) -> int:
    return (*version_tuple(version), 0, 0)[1]


def _cuda_of(package: str) -> int | None:
    """CUDA's major version in a package name: `-cu13` and `-cuda130` are 13."""
    digits = package.rpartition("-cuda")[2] if "-cuda" in package else package.rpartition("-cu")[2]
    return int(digits[:2]) if digits.isdigit() else None
