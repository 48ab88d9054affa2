"""Compile kernels for a GPU that is not there: to PTX and machine code, without a driver.

    with compiling_for(90) as compiled:
        warp(features, deformation, None, align_corners=True)       # on tensors anywhere
    compiled[0].registers

Inside, Triton believes in a GPU of the given architecture. It specialises and compiles every launch
as it would there (types, alignment, arguments that equal one) and runs nothing; results are not
written. So what is seen is what production compiles, and a kernel that needs too many registers
shows before there is a machine to run it on. The assembler that makes machine code of PTX comes
with Triton.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import jit
from triton.runtime.driver import driver

from dfm_kernels.dispatch import launching_anywhere

__all__ = ["Compiled", "compiling_for"]

SHARED_BYTES = 96 * 1024  # every GPU from sm_80 on grants a program as much
MAX_THREADS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """One kernel in one specialisation.

    Attributes:
        name: of the kernel.
        target: as the PTX names it, such as `sm_90a`.
        ptx: the assembly.
        registers: of a thread.
        spilled_bytes: of a thread's registers, kept in memory for want of room.
        shared_bytes: of a program.
        warps: of a program.
    """

    name: str
    target: str
    ptx: str
    registers: int
    spilled_bytes: int
    shared_bytes: int
    warps: int


@contextlib.contextmanager
def compiling_for(architecture: int) -> Iterator[list[Compiled]]:
    """Collect what is launched inside, compiled and not run; each specialisation once.

    Args:
        architecture: compute capability without its dot, such as 80 or 90.

    Yields:
        A list that is filled when the block is left.
    """
    found: list[Compiled] = []
    before, nowhere = driver._active, _Driver(architecture)
    driver.set_active(nowhere)  # pyright: ignore[reportArgumentType]
    try:
        with launching_anywhere():
            yield found
    finally:
        driver._active = before
        for function in list(jit._triton_jit_function_registry.values()):
            kernels, *_ = function.device_caches.pop(nowhere.device, ({},))
            found += [_look_at(kernel) for kernel in kernels.values()]


def _look_at(kernel: Any) -> Compiled:
    ptx = kernel.asm["ptx"]
    target = re.findall(r"^\.target (\w+)", ptx, re.MULTILINE)[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        log = subprocess.run(
            [knobs.nvidia.ptxas.path, "-v", f"--gpu-name={target}", path, "-o", f"{path}.cubin"],
            check=True,
            capture_output=True,
            text=True,
        ).stderr
    return Compiled(
        name=kernel.name,
        target=target,
        ptx=ptx,
        registers=int(re.findall(r"Used (\d+) registers", log)[0]),
        spilled_bytes=sum(map(int, re.findall(r"(\d+) bytes spill", log))),
        shared_bytes=kernel.metadata.shared,
        warps=kernel.metadata.num_warps,
    )


class _Driver:
    """As much of a Triton driver as a launch asks for."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture
        self.device = f"nowhere {id(self)}"  # Triton keeps its kernels by device
        self.utils = self

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)

    def get_current_device(self) -> str:
        return self.device

    def get_current_stream(self, device: object) -> int:
        return 0

    def get_device_properties(self, device: object) -> dict[str, int]:
        return {"max_shared_mem": SHARED_BYTES}

    def load_binary(self, *_: object) -> tuple[None, int, int, int, int]:
        return None, 0, 0, 0, MAX_THREADS  # no module: Triton has nothing to unload

    def unload_module(self, module: object) -> None:
        """Nothing was loaded."""

    def launcher_cls(self, source: object, metadata: object) -> Callable[..., None]:
        return lambda *_: None
