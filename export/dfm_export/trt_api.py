"""The two flavours of TensorRT behind one door: `tensorrt` (data-centre) and `tensorrt-rtx`.

Their Python modules share names and shapes, so one builder and one runner serve both. What one has
and the other has not is asked of the module (`hasattr`), never of its version. Nothing is imported
before `open_tensorrt` is called; what an engine depends on (the library's full version) can be
read from package metadata alone, by `library_version`.

Source: NVIDIA's Python API references of TensorRT 10, 11 and TensorRT for RTX 1.x.
"""

from __future__ import annotations

import functools
import importlib
import threading
from collections import deque
from dataclasses import dataclass
from importlib import metadata
from typing import Any, Literal, cast, get_args

from dfm_engine.errors import EnvironmentUnfit, UsageError

__all__ = [
    "FLAVOURS",
    "Flavour",
    "TensorRt",
    "TensorRtError",
    "flavour_of",
    "has_library",
    "library_cuda",
    "library_version",
    "open_tensorrt",
]

Flavour = Literal["tensorrt", "tensorrt-rtx"]
FLAVOURS: tuple[Flavour, ...] = get_args(Flavour)
EXTRAS: dict[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "rtx"}
_MODULES: dict[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_DISTRIBUTIONS: dict[Flavour, tuple[str, ...]] = {
    "tensorrt": ("tensorrt-cu13", "tensorrt-cu12", "tensorrt"),
    "tensorrt-rtx": ("tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx"),
}
KEPT_MESSAGES = 200


class TensorRtError(EnvironmentUnfit):
    """The library refused to parse, build, load or run, and gave these reasons."""


class Messages:
    """What the library said since it was last asked, at warning level and above."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=KEPT_MESSAGES)
        self._lock = threading.Lock()

    def add(self, severity: str, text: str) -> None:
        """Keep a line; the oldest go first."""
        with self._lock:
            self._lines.append(f"{severity}: {text.strip()}")

    def take(self) -> tuple[str, ...]:
        """All that is kept, which is then forgotten."""
        with self._lock:
            lines = tuple(self._lines)
            self._lines.clear()
        return lines

    def sentence(self) -> str:
        """`take`, for the end of an error message."""
        lines = self.take()
        return "; ".join(lines) if lines else "the library gave no reason"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRt:
    """One flavour, imported.

    Attributes:
        flavour: which.
        api: its Python module.
        version: of the library, in full.
        logger: an `ILogger`; the library keeps the first that a process shows it, so there is one.
        messages: what that logger heard.
    """

    flavour: Flavour
    api: Any
    version: str
    logger: Any
    messages: Messages

    @property
    def targets(self) -> tuple[str, ...]:
        """Chips that it builds for without having them, such as `sm89`; empty for data-centre."""
        known = getattr(self.api, "ComputeCapability", None)
        if known is None:
            return ()
        return tuple(name.lower() for name in known.__members__ if name.startswith("SM"))

    @property
    def has_timing_cache(self) -> bool:
        """Whether timing a kernel once is worth keeping: not where kernels are compiled at load."""
        return not self.targets

    def check_target(self, target: str) -> None:
        """Refuse a chip that this flavour does not know, before anything is built or loaded for it.

        Raises:
            UsageError: names the chips that it knows, and the flavour that may know this one.
        """
        if self.targets and target not in self.targets:
            raise UsageError(
                f"{self.flavour} {self.version} does not know the chip {target}; it knows "
                f"{', '.join(self.targets)}. For {target} use data-centre TensorRT: "
                "pip install 'dfm-engine[tensorrt]', then --to tensorrt or --backend tensorrt"
            )


def flavour_of(word: str) -> Flavour:
    """A flavour by its name on the command line.

    Raises:
        UsageError: it is none.
    """
    if word not in FLAVOURS:
        raise UsageError(f"a TensorRT flavour is one of {', '.join(FLAVOURS)}, found {word!r}")
    return cast("Flavour", word)


def library_version(flavour: Flavour) -> str | None:
    """The full version of the installed library from package metadata; None if absent.

    Imports nothing: an engine's key can be computed where the library does not load.
    """
    found = _distribution(flavour)
    return found[1] if found else None


def library_cuda(flavour: Flavour) -> str | None:
    """CUDA's major version that the installed library is for, such as `13`; None if not said."""
    found = _distribution(flavour)
    return found[0].rpartition("-cu")[2] if found and "-cu" in found[0] else None


def has_library(flavour: Flavour) -> bool:
    """Whether it is installed; it may still not load, for want of a driver."""
    return library_version(flavour) is not None


@functools.cache
def open_tensorrt(flavour: Flavour) -> TensorRt:
    """Import a flavour.

    Raises:
        EnvironmentUnfit: it is not installed, or does not load; names the extra.
    """
    hint = f"pip install 'dfm-engine[{EXTRAS[flavour]}]'"
    try:
        api = importlib.import_module(_MODULES[flavour])
    except ImportError as error:
        state = "does not load" if has_library(flavour) else "is not installed"
        raise EnvironmentUnfit(
            f"{flavour} {state} ({error}); {hint}, or use --backend onnxruntime"
        ) from error
    except (OSError, RuntimeError) as error:  # a library beside it, or its probe of the driver
        raise EnvironmentUnfit(
            f"{flavour} {library_version(flavour)} does not load ({error}); it may need a driver: "
            "`dfm-engine doctor`; or use --backend onnxruntime"
        ) from error
    messages = Messages()
    return TensorRt(
        flavour=flavour,
        api=api,
        version=library_version(flavour) or str(getattr(api, "__version__", "unknown")),
        logger=_make_logger(api, messages),
        messages=messages,
    )


def _distribution(flavour: Flavour) -> tuple[str, str] | None:
    """Name and version of the installed package."""
    for name in _DISTRIBUTIONS[flavour]:
        try:
            return name, metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _make_logger(api: Any, messages: Messages) -> Any:
    class Listening(api.ILogger):  # its base is known only now
        def __init__(self) -> None:
            api.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            name = getattr(severity, "name", str(severity)).rsplit(".", 1)[-1]
            if name in ("INTERNAL_ERROR", "ERROR", "WARNING"):
                messages.add(name.lower().replace("_", " "), msg)

    return Listening()
