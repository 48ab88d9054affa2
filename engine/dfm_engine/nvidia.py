"""What the NVIDIA driver offers, asked of its own libraries: no torch, no nvidia-smi.

Three shared libraries come with the driver: `libcuda` (compute), `libnvcuvid` (NVDEC) and
`libnvidia-encode` (NVENC). In a container the last two are there only if
NVIDIA_DRIVER_CAPABILITIES holds `video`; unset means `utility` alone.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import re
from dataclasses import dataclass
from pathlib import Path

_COMPUTE_MAJOR, _COMPUTE_MINOR = 75, 76  # CUdevice_attribute
CODECS = {"h264": 4, "hevc": 8, "vp9": 10, "av1": 11}  # cudaVideoCodec
_CHROMA_420 = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One CUDA device: `compute_capability` is (major, minor)."""

    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NvidiaFacts:
    """What was found.

    Attributes:
        driver: version of the kernel driver, None where it does not show.
        driver_cuda: newest CUDA that the driver serves, (major, minor).
        gpus: devices that CUDA may use (CUDA_VISIBLE_DEVICES counts).
        cuda_error: why there is no such device.
        nvdec: codecs that the first device decodes (8-bit 4:2:0) -> number of decoders used.
        nvdec_sizes: the same codecs -> least width and height, largest width and height.
        nvdec_error: why NVDEC cannot be used.
        has_nvenc: the encoder's library loads.
    """

    driver: str | None = None
    driver_cuda: tuple[int, int] | None = None
    gpus: tuple[Gpu, ...] = ()
    cuda_error: str | None = None
    nvdec: dict[str, int] | None = None
    nvdec_sizes: dict[str, tuple[int, int, int, int]] | None = None
    nvdec_error: str | None = None
    has_nvenc: bool = False


class _DecodeCaps(ctypes.Structure):
    """CUVIDDECODECAPS of the Video Codec SDK, 12.0 and later."""

    _fields_ = (
        ("codec", ctypes.c_int),
        ("chroma_format", ctypes.c_int),
        ("bit_depth_minus_8", ctypes.c_uint),
        ("reserved1", ctypes.c_uint * 3),
        ("is_supported", ctypes.c_ubyte),
        ("decoder_count", ctypes.c_ubyte),
        ("output_format_mask", ctypes.c_ushort),
        ("max_width", ctypes.c_uint),
        ("max_height", ctypes.c_uint),
        ("max_macroblocks", ctypes.c_uint),
        ("min_width", ctypes.c_ushort),
        ("min_height", ctypes.c_ushort),
        ("has_histogram", ctypes.c_ubyte),
        ("histogram_depth", ctypes.c_ubyte),
        ("histogram_bins", ctypes.c_ushort),
        ("reserved3", ctypes.c_uint * 10),
    )


def read_nvidia() -> NvidiaFacts:
    """Ask the driver's libraries; what is absent is a fact too, never an exception."""
    driver = _kernel_driver()
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        why = "no NVIDIA driver here" if driver is None else f"libcuda does not load ({error})"
        return NvidiaFacts(driver=driver, cuda_error=why, nvdec_error=why)
    version = ctypes.c_int()
    cuda.cuDriverGetVersion(ctypes.byref(version))
    driver_cuda = (version.value // 1000, version.value % 1000 // 10) if version.value else None
    has_nvenc = _loads("libnvidia-encode.so.1") is None
    gpus, cuda_error = _gpus(cuda)
    found, nvdec_error = _nvdec(cuda) if gpus else (None, cuda_error)
    return NvidiaFacts(
        driver=driver,
        driver_cuda=driver_cuda,
        gpus=gpus,
        cuda_error=cuda_error,
        nvdec={codec: caps.decoder_count for codec, caps in found.items()} if found else None,
        nvdec_sizes={codec: _sizes(caps) for codec, caps in found.items()} if found else None,
        nvdec_error=nvdec_error,
        has_nvenc=has_nvenc,
    )


def _kernel_driver() -> str | None:
    try:
        text = Path("/proc/driver/nvidia/version").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    match = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return match.group(1) if match else None


def _gpus(cuda: ctypes.CDLL) -> tuple[tuple[Gpu, ...], str | None]:
    code = cuda.cuInit(0)
    if code:
        return (), f"cuInit failed: {_error_name(cuda, code)}"
    count = ctypes.c_int()
    cuda.cuDeviceGetCount(ctypes.byref(count))
    gpus: list[Gpu] = []
    for index in range(count.value):
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
        cuda.cuDeviceGet(ctypes.byref(device), index)
        cuda.cuDeviceGetName(name, len(name), device)
        cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
        cuda.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_MAJOR, device)
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_MINOR, device)
        gpus.append(
            Gpu(
                name=name.value.decode("ascii", "replace"),
                compute_capability=(major.value, minor.value),
                memory_bytes=memory.value,
            )
        )
    return tuple(gpus), None if gpus else "CUDA sees no device"


def _sizes(caps: _DecodeCaps) -> tuple[int, int, int, int]:
    return caps.min_width, caps.min_height, caps.max_width, caps.max_height


def _nvdec(cuda: ctypes.CDLL) -> tuple[dict[str, _DecodeCaps] | None, str | None]:
    """Codecs of the first device; the question needs a context, which is released again."""
    if error := _loads("libnvcuvid.so.1"):
        return None, error
    cuvid = ctypes.CDLL("libnvcuvid.so.1")
    context = ctypes.c_void_p()
    code = cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)
    if code:
        return None, f"no CUDA context: {_error_name(cuda, code)}"
    try:
        cuda.cuCtxPushCurrent_v2(context)
        found: dict[str, _DecodeCaps] = {}
        for codec, number in CODECS.items():
            caps = _DecodeCaps(codec=number, chroma_format=_CHROMA_420)
            code = cuvid.cuvidGetDecoderCaps(ctypes.byref(caps))
            if code:
                return None, f"cuvidGetDecoderCaps failed: {_error_name(cuda, code)}"
            if caps.is_supported:
                found[codec] = caps
        cuda.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))
    finally:
        cuda.cuDevicePrimaryCtxRelease_v2(0)
    return (found, None) if found else (None, "this GPU has no video decoder")


def _loads(library: str) -> str | None:
    """Why a library does not load, or None if it does."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return f"{library} does not load"
    return None


def _error_name(cuda: ctypes.CDLL, code: int) -> str:
    name = ctypes.c_char_p()
    cuda.cuGetErrorName(code, ctypes.byref(name))
    return f"{(name.value or b'unknown error').decode()} ({code})"
