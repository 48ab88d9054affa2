"""The import rules of the packages, read from the source: nothing is imported to check them.

A package imports only those below it; the pipeline's light modules never load torch, so that
encoder processes start fast and `--help` and `doctor` answer at once.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
FOLDERS = {
    "dfm_kernels": "kernels",
    "dfm_engine": "engine",
    "dfm_export": "export",
    "dfm_bench": "bench",
}
ORDER = tuple(FOLDERS)  # each may import those before it
KERNELS_MAY_IMPORT = {"torch", "triton", "numpy", "dfm_kernels"}
COMPOSITION_ROOT = "dfm_engine.cli"  # it and its modules may import anything, inside commands
HEAVY = {"torch", "torchvision", "triton", "onnxruntime", "nvidia", "tensorrt", "tensorrt_rtx"}
LIGHT = (
    "dfm_engine",
    "dfm_engine.actions",
    "dfm_engine.audit.reading",
    "dfm_engine.cli",
    "dfm_engine.clip",
    "dfm_engine.detect.video_reading",
    "dfm_engine.doctor",
    "dfm_engine.errors",
    "dfm_engine.framing_workers",
    "dfm_engine.jobs",
    "dfm_engine.manifest",
    "dfm_engine.media.decoding_process",
    "dfm_engine.media.encode",
    "dfm_engine.media.encode_worker",
    "dfm_engine.media.pool",
    "dfm_engine.media.probe",
    "dfm_engine.plan",
    "dfm_engine.recipe",
    "dfm_engine.report",
    "dfm_engine.sources",
    "dfm_engine.split",
    "dfm_engine.store.draws",
    "dfm_engine.store.fill",
    "dfm_engine.store.order",
    "dfm_engine.store.pyav_worker",
)


def modules() -> dict[str, Path]:
    """Every module of the project by its dotted name."""
    found: dict[str, Path] = {}
    for package, folder in FOLDERS.items():
        for path in sorted((REPO / folder / package).rglob("*.py")):
            parts = path.relative_to(REPO / folder).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


@cache
def imports(module: str) -> tuple[tuple[str, int, bool], ...]:
    """(imported name, line, whether the import runs when the module is imported)."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    return tuple(_imports_of(tree, runs=True))


def _imports_of(node: ast.AST, *, runs: bool) -> Iterator[tuple[str, int, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from ((alias.name, child.lineno, runs) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield ("." * child.level + (child.module or ""), child.lineno, runs)
            yield from (
                (f"{child.module}.{alias.name}", child.lineno, runs)
                for alias in child.names
                if f"{child.module}.{alias.name}" in MODULES
            )
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from _imports_of(child, runs=False)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            for part in child.body:
                yield from _imports_of(ast.Module([part], []), runs=False)
            for part in child.orelse:
                yield from _imports_of(ast.Module([part], []), runs=runs)
        else:
            yield from _imports_of(child, runs=runs)


def wrongs(module: str) -> list[str]:
    """Imports of a module that the table of packages does not allow."""
    package = module.split(".")[0]
    found: list[str] = []
    for name, line, runs in imports(module):
        top = name.split(".")[0]
        where = f"{MODULES[module].relative_to(REPO)}:{line} imports {name}"
        if name.startswith("."):
            found.append(f"{where}: imports are absolute")
        elif top in ORDER and ORDER.index(top) > ORDER.index(package):
            if runs or not f"{module}.".startswith(f"{COMPOSITION_ROOT}."):
                found.append(f"{where}: {package} stands below {top}")
        elif (
            package == "dfm_kernels"
            and top not in KERNELS_MAY_IMPORT
            and top not in sys.stdlib_module_names
        ):
            found.append(f"{where}: kernels know only {', '.join(sorted(KERNELS_MAY_IMPORT))}")
    return found


def way_to_heavy(module: str) -> list[str] | None:
    """The chain of imports by which importing a module loads something heavy, or None."""
    seen: set[str] = set()
    pending = [[module]]
    while pending:
        way = pending.pop(0)
        name = way[-1]
        if name.split(".")[0] in HEAVY:
            return way
        if name in seen or name not in MODULES:
            continue
        seen.add(name)
        parents = [name.rsplit(".", 1)[0]] if "." in name else []
        targets = [*parents, *(target for target, _, runs in imports(name) if runs)]
        pending += [[*way, target] for target in targets]
    return None


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_module_imports_only_what_its_package_may(module: str) -> None:
    assert not wrongs(module)


@pytest.mark.parametrize("module", LIGHT)
def test_a_light_module_never_loads_torch(module: str) -> None:
    assert module in MODULES, "a light module was renamed: correct the list"
    way = way_to_heavy(module)
    assert way is None, " -> ".join(way or [])


def test_importing_the_light_modules_really_loads_nothing_heavy() -> None:
    script = f"""
import importlib, sys
for name in {LIGHT!r}:
    importlib.import_module(name)
print(sorted({HEAVY!r} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_the_rules_see_what_they_forbid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = {
        "dfm_kernels.bad": "import numpy, os\nfrom scipy import ndimage\nimport dfm_engine.clip\n",
        "dfm_engine.bad": "from . import clip\nclass A:\n    from dfm_bench import anything\n",
        "dfm_engine.cli": "def f():\n    import dfm_bench\nimport dfm_export\n",
        "dfm_engine.indirect": "if True:\n    from dfm_engine.deep import thing\n",
        "dfm_engine.deep.thing": "try:\n    import torch.nn\nexcept ImportError:\n    pass\n",
        "dfm_engine.lazy": (
            "if TYPE_CHECKING:\n    import torch\nelse:\n    import os\n"
            "def f():\n    import torch\n"
        ),
    }
    for name, text in source.items():
        (tmp_path / name).write_text(text)
        monkeypatch.setitem(MODULES, name, tmp_path / name)
    monkeypatch.setitem(globals(), "REPO", tmp_path)
    imports.cache_clear()
    try:
        lines = [wrong.split(" imports ")[0] for wrong in wrongs("dfm_kernels.bad")]
        assert lines == ["dfm_kernels.bad:2", "dfm_kernels.bad:3"]
        assert len(wrongs("dfm_engine.bad")) == 2
        assert [w.split(":")[1].split()[0] for w in wrongs("dfm_engine.cli")] == ["3"]
        assert way_to_heavy("dfm_engine.indirect") == [
            *("dfm_engine.indirect", "dfm_engine.deep.thing", "torch.nn"),
        ]
        assert way_to_heavy("dfm_engine.lazy") is None
    finally:
        imports.cache_clear()
