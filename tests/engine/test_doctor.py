"""Doctor: every verdict from made-up facts, and the facts from made-up machines."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dfm_engine import machine, nvidia
from dfm_engine.doctor import GIB, DoctorReport, Verdict, judge, run_doctor
from dfm_engine.machine import MachineFacts, read_cores, read_memory, unmet_requirements
from dfm_engine.nvidia import Gpu, NvidiaFacts

H200 = Gpu(name="NVIDIA H200", compute_capability=(9, 0), memory_bytes=141 * GIB)
GOOD_GPU = NvidiaFacts(
    driver="580.65.06",
    driver_cuda=(13, 0),
    gpus=(H200,),
    nvdec={"h264": 7, "hevc": 7, "vp9": 7, "av1": 7},
    has_nvenc=False,
)
GOOD = MachineFacts(
    python=(3, 11),
    system="Linux 6 x86_64",
    packages={
        "torch": "2.14.1+cu130",
        "torchvision": "0.29.1",
        "triton": "3.8.0",
        "av": "18.1.0",
        "onnxruntime-gpu": "1.31.1",
        "nvidia-dali-cuda130": "2.4.0",
        "tensorrt-rtx-cu13": "1.7.1.116",
    },
    torch_cuda=(13, 0),
    onnxruntime_cuda=(13, 0),
    onnxruntime_providers=("cuda", "tensorrt", "cpu"),
    has_x264=True,
    cores=16.0,
    memory_bytes=64 * GIB,
    memory_free_bytes=60 * GIB,
    disk_free_bytes=500 * GIB,
    shm_bytes=8 * GIB,
    compiler="/usr/bin/g++",
    nvidia=GOOD_GPU,
)
NO_GPU = NvidiaFacts(cuda_error="no NVIDIA driver here", nvdec_error="no NVIDIA driver here")


def verdict_of(name: str, facts: MachineFacts, **options: bool) -> tuple[Verdict, str, str]:
    (check,) = (check for check in judge(facts, **options) if check.name == name)
    return check.verdict, check.found, check.hint


def test_a_good_machine_passes_every_check() -> None:
    checks = judge(GOOD, require_gpu=True)
    assert {check.verdict for check in checks if check.name != "NVENC"} == {Verdict.PASS}
    assert DoctorReport(checks=checks, facts=GOOD).exit_code == 0
    found = {check.name: check.found for check in checks}
    assert found["GPU"] == ("NVIDIA H200, 141 GiB, compute 9.0; driver 580.65.06, serves CUDA 13.0")
    assert found["NVDEC"] == "7 decoders: h264, hevc, vp9, av1"


@pytest.mark.parametrize(
    ("check", "changes", "verdict", "says"),
    [
        ("Python", {"python": (3, 13)}, "warn", "3.13"),
        ("Packages", {"unmet": ("mtcnn is absent",)}, "fail", "mtcnn is absent"),
        ("Packages", {"unmet": None}, "note", "not checked"),
        ("Video", {"has_x264": None, "media_error": "No module named 'av'"}, "fail", "No module"),
        ("Video", {"has_x264": False}, "fail", "no libx264"),
        ("Video", {"missing_decoders": ("av1",)}, "warn", "no decoder for av1"),
        ("Compiler", {"compiler": None}, "note", "no g++"),
        ("Cores", {"cores": 1.5}, "warn", "1.5 usable"),
        ("Memory", {"memory_free_bytes": 3 * GIB}, "warn", "3.0 of 64.0 GiB"),
        ("Memory", {"memory_free_bytes": GIB // 2}, "fail", "0.5 of 64.0 GiB"),
        ("Disk", {"disk_free_bytes": 9 * GIB}, "warn", "9.0 GiB free"),
        ("Temporary files", {"temp_error": "Read-only file system"}, "fail", "Read-only"),
        ("Shared memory", {"shm_bytes": 64 << 20}, "warn", "0.06 GiB"),
        ("Shared memory", {"shm_bytes": None}, "warn", "cannot be written"),
        ("torch", {"packages": {**GOOD.packages, "torchvision": "0.28.0"}}, "warn", "0.28.0"),
        ("torch", {"packages": {**GOOD.packages, "torch": "2.0"}}, "warn", "2.0 for CUDA 13.0"),
        ("DALI", {"packages": {"torch": "2.14.1"}}, "warn", "absent"),
        ("TensorRT", {"packages": {"torch": "2.14.1"}}, "warn", "absent"),
        ("ONNX Runtime", {"packages": {"torch": "2.14.1"}}, "warn", "absent"),
        (
            "ONNX Runtime",
            {"packages": {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"}},
            "warn",
            "onnxruntime 1.31.1, onnxruntime-gpu 1.31.1",
        ),
        ("ONNX Runtime", {"onnxruntime_providers": ("cpu",)}, "warn", "providers: cpu"),
        ("CUDA", {"torch_cuda": (12, 8)}, "warn", "torch 12, ONNX Runtime 13"),
        (
            "CUDA",
            {"packages": {"tensorrt-cu12": "10.13", "nvidia-dali-cuda130": "2.4"}},
            "warn",
            "nvidia-dali-cuda130 13, tensorrt-cu12 12",
        ),
    ],
)
def test_each_fact_has_its_verdict(check: str, changes, verdict: str, says: str) -> None:
    facts = replace(GOOD, **changes)
    found = verdict_of(check, facts)
    assert found[0] == verdict
    assert says in found[1]
    assert found[2], "what is not right needs a hint"
    failed = DoctorReport(checks=judge(facts), facts=facts).exit_code == 4
    assert failed == (verdict == "fail")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"nvidia": NO_GPU}, "no NVIDIA driver here"),
        (
            {"nvidia": NvidiaFacts(driver_cuda=(13, 0), cuda_error="cuInit failed: X (100)")},
            "cuInit failed: X (100)",
        ),
        ({"torch_cuda": None}, "torch is a CPU build"),
        ({"nvidia": replace(GOOD_GPU, driver_cuda=(12, 8))}, "torch needs CUDA 13.0"),
        (
            {"nvidia": replace(GOOD_GPU, gpus=(replace(H200, compute_capability=(7, 0)),))},
            "a device of compute 7.0 is too old",
        ),
    ],
)
def test_an_unusable_gpu_fails_only_where_one_is_required(changes, says: str) -> None:
    facts = replace(GOOD, **changes)
    relaxed = judge(facts)
    assert all(check.verdict is not Verdict.FAIL for check in relaxed)
    verdict, found, _ = verdict_of("GPU", facts, require_gpu=True)
    assert (verdict, says in found) == (Verdict.FAIL, True)
    assert DoctorReport(checks=judge(facts, require_gpu=True), facts=facts).exit_code == 4


@pytest.mark.parametrize(
    ("capabilities", "blamed"),
    [("compute,utility", True), ("compute,video,utility", False), ("all", False), (None, False)],
)
def test_nvdec_that_does_not_load_blames_the_container_where_it_is_to_blame(
    capabilities: str | None, blamed: bool
) -> None:
    broken = replace(GOOD_GPU, nvdec=None, nvdec_error="libnvcuvid.so.1 does not load")
    facts = replace(GOOD, nvidia=broken, driver_capabilities=capabilities)
    verdict, found, hint = verdict_of("NVDEC", facts)
    assert (verdict, found) == (Verdict.WARN, "libnvcuvid.so.1 does not load")
    assert ("NVIDIA_DRIVER_CAPABILITIES" in hint) == blamed


def test_dali_says_what_it_decodes_here_and_what_keeps_it_from_it() -> None:
    verdict, found, _ = verdict_of("DALI", GOOD)
    assert verdict is Verdict.PASS
    assert found.endswith("2.4.0; decodes h264, hevc with NVDEC, the rest on CPUs")
    no_video = replace(GOOD_GPU, nvdec=None, nvdec_error="libnvcuvid.so.1 does not load")
    verdict, found, hint = verdict_of("DALI", replace(GOOD, nvidia=no_video))
    assert verdict is Verdict.WARN
    assert found.endswith("decodes nothing here: libnvcuvid.so.1 does not load")
    assert "NVDEC above" in hint
    verdict, found, _ = verdict_of("DALI", replace(GOOD, nvidia=NO_GPU))
    assert verdict is Verdict.NOTE
    assert found.endswith("decodes nothing here: no NVIDIA driver here")
    only_av1 = replace(GOOD_GPU, nvdec={"av1": 1})
    assert verdict_of("DALI", replace(GOOD, nvidia=only_av1))[0] is Verdict.WARN


def test_backends_are_those_that_run_here_with_a_reason_for_each_other() -> None:
    assert verdict_of("Backends", GOOD)[:2] == (
        Verdict.PASS,
        "torch, onnxruntime (cpu, cuda); openvino is not installed; tensorrt is not installed; "
        "tensorrt-rtx does not know compute 9.0, tensorrt does",
    )
    ada = replace(H200, compute_capability=(8, 9))
    both = replace(
        GOOD,
        packages={**GOOD.packages, "tensorrt-cu13": "10.16.1.11", "openvino": "2025.4.0"},
        nvidia=replace(GOOD_GPU, gpus=(ada,)),
    )
    found = verdict_of("Backends", both)[1]
    assert found == "torch, onnxruntime (cpu, cuda), openvino (cpu), tensorrt, tensorrt-rtx"
    assert verdict_of("Backends", replace(both, nvidia=NO_GPU))[1] == (
        "torch, onnxruntime (cpu), openvino (cpu); tensorrt runs on a GPU; "
        "tensorrt-rtx builds engines, runs on a GPU"
    )
    assert verdict_of("Backends", replace(GOOD, packages={}))[0] is Verdict.WARN


def test_codecs_that_nvdec_lacks_are_named() -> None:
    hopper = replace(GOOD_GPU, nvdec={"h264": 7, "hevc": 7, "vp9": 7})
    verdict, found, _ = verdict_of("NVDEC", replace(GOOD, nvidia=hopper))
    assert verdict is Verdict.PASS
    assert found == "7 decoders: h264, hevc, vp9; av1 stays on the CPU"


def test_without_a_gpu_its_libraries_are_no_warnings() -> None:
    bare = replace(GOOD, nvidia=NO_GPU, packages={"torch": "2.14.1", "torchvision": "0.29.1"})
    assert verdict_of("DALI", bare)[0] is Verdict.NOTE
    assert verdict_of("TensorRT", bare)[0] is Verdict.NOTE
    assert not [check for check in judge(bare) if check.name in ("NVDEC", "NVENC")]


def test_report_is_plain_data_and_a_readable_table() -> None:
    from rich.console import Console

    report = DoctorReport(checks=judge(replace(GOOD, has_x264=False)), facts=GOOD)
    data = json.loads(json.dumps(report.to_json()))
    assert (data["exit_code"], data["schema_version"]) == (4, 1)
    assert data["facts"]["nvidia"]["gpus"][0]["name"] == "NVIDIA H200"
    assert {"name", "verdict", "found", "hint"} == set(data["checks"][0])
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report.table())
    text = console.export_text()
    assert "FAIL  Video" in text
    assert "-> install PyAV from PyPI" in text
    assert "tested with Python" not in text, "a hint is shown only where something is not right"


def test_doctor_imports_nothing_heavy(tmp_path: Path) -> None:
    script = (
        "import sys; from dfm_engine.doctor import run_doctor; report = run_doctor(); "
        "report.print(); report.to_json(); "
        "print([m for m in ('torch', 'onnxruntime', 'nvidia', 'tensorrt_rtx', 'pyarrow') "
        "if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout == "[]\n"
    assert "libx264" in done.stderr


def test_run_doctor_reads_this_machine() -> None:
    report = run_doctor(folder=Path("no/such/folder/yet"))
    facts = report.facts
    assert facts.python == sys.version_info[:2]
    assert facts.has_x264 is True
    assert facts.cores >= 0.1
    assert 0 < facts.memory_free_bytes <= facts.memory_bytes
    torch_version = Path(machine._package_folder("torch") or "", "version.py").read_text()
    if facts.torch_cuda:
        assert f"'{facts.torch_cuda[0]}.{facts.torch_cuda[1]}'" in torch_version
    assert "cpu" in facts.onnxruntime_providers


# -- facts -----------------------------------------------------------------------------------


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:       8388608 kB\nMemFree:  1 kB\nMemAvailable:   6291456 kB\n")
    return path


def test_memory_without_a_container_is_the_machines(tmp_path: Path, meminfo: Path) -> None:
    found = read_memory(cgroup=tmp_path / "none", own=tmp_path / "none", meminfo=meminfo)
    assert found == (8 * GIB, 6 * GIB)


def test_memory_and_cores_obey_cgroup_version_2_at_every_level(
    tmp_path: Path, meminfo: Path
) -> None:
    own, top = tmp_path / "own", tmp_path / "cg"
    own.write_text("0::/a/b\n")
    write(
        top / "a/b",
        memory__max=str(4 * GIB),
        memory__current=str(3 * GIB),
        memory__stat=f"anon 1\ninactive_file {GIB}",
        cpu__max="max 100000",
    )
    write(top / "a", memory__max="max", memory__current="7", cpu__max="50000 100000")
    assert read_memory(cgroup=top, own=own, meminfo=meminfo) == (4 * GIB, 2 * GIB)
    assert read_cores(cgroup=top, own=own) == 0.5


def test_memory_and_cores_obey_cgroup_version_1(tmp_path: Path, meminfo: Path) -> None:
    own, top = tmp_path / "own", tmp_path / "cg"
    own.write_text("4:memory:/x\n3:cpu,cpuacct:/x\n1:name=systemd:/x\n")
    write(
        top / "memory",  # inside a container the path of the group is often not there
        memory__limit_in_bytes=str(2 * GIB),
        memory__usage_in_bytes=str(GIB),
        memory__stat="total_inactive_file 0",
    )
    write(top / "cpu", cpu__cfs_quota_us="75000", cpu__cfs_period_us="100000")
    assert read_memory(cgroup=top, own=own, meminfo=meminfo) == (2 * GIB, GIB)
    assert read_cores(cgroup=top, own=own) == 0.75
    write(top / "cpu", cpu__cfs_quota_us="-1")
    assert read_cores(cgroup=top, own=own) >= 1


def test_unmet_requirements_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["numpy>=1.0", "torch>=99.5", "no-such-thing>=1", "pytest>=99; extra == 'dev'"]
    monkeypatch.setattr(machine.metadata, "requires", lambda _: wanted)
    problems = unmet_requirements("x")
    assert problems is not None
    assert len(problems) == 2
    assert problems[0].endswith("is older than 99.5")
    assert problems[1] == "no-such-thing is absent"
    monkeypatch.undo()
    assert unmet_requirements("no-such-distribution") is None


def test_shared_memory_that_cannot_be_written_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "access", lambda *_: False)
    assert machine._shm_bytes() is None


class FakeDriver:
    """Answers as libcuda and libnvcuvid would; `fails` maps a function to its error code."""

    def __init__(self, **fails: int) -> None:
        self.fails = fails
        self.released = False

    def __getattr__(self, function: str):
        if function in self.fails:
            return lambda *_: self.fails[function]
        return lambda *_: 0

    def cuGetErrorName(self, code, out) -> int:
        out._obj.value = b"CUDA_ERROR_NO_DEVICE"
        return 0

    def cuDriverGetVersion(self, out) -> int:
        out._obj.value = 12080
        return 0

    def cuDeviceGetCount(self, out) -> int:
        out._obj.value = 1
        return 0

    def cuDeviceGetName(self, buffer, size, device) -> int:
        buffer.value = b"Made Up 1"
        return 0

    def cuDeviceTotalMem_v2(self, out, device) -> int:
        out._obj.value = 16 * GIB
        return 0

    def cuDeviceGetAttribute(self, out, attribute, device) -> int:
        out._obj.value = {75: 8, 76: 9}[attribute]
        return 0

    def cuDevicePrimaryCtxRelease_v2(self, device) -> int:
        self.released = True
        return 0

    def cuvidGetDecoderCaps(self, out) -> int:
        caps = out._obj
        assert ctypes.sizeof(caps) == 88  # what the driver writes into
        assert (caps.chroma_format, caps.bit_depth_minus_8) == (1, 0)
        caps.is_supported, caps.decoder_count = caps.codec in (4, 8), 2
        caps.min_width, caps.min_height, caps.max_width, caps.max_height = 48, 16, 4096, 4095
        return 0


def fake_libraries(monkeypatch: pytest.MonkeyPatch, **libraries: FakeDriver | None) -> None:
    def load(name: str):
        library = libraries.get(name.split(".")[0].replace("-", "_"))
        if library is None:
            raise OSError(f"{name}: cannot open shared object file")
        return library

    monkeypatch.setattr(nvidia.ctypes, "CDLL", load)


def test_driver_libraries_are_asked_for_devices_and_decoders(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = FakeDriver()
    fake_libraries(monkeypatch, libcuda=driver, libnvcuvid=driver, libnvidia_encode=driver)
    facts = nvidia.read_nvidia()
    assert facts.driver_cuda == (12, 8)
    assert facts.gpus == (Gpu(name="Made Up 1", compute_capability=(8, 9), memory_bytes=16 * GIB),)
    assert facts.nvdec == {"h264": 2, "hevc": 2}
    assert facts.nvdec_sizes == dict.fromkeys(facts.nvdec, (48, 16, 4096, 4095))
    assert (facts.cuda_error, facts.nvdec_error, facts.has_nvenc) == (None, None, True)
    assert driver.released


def test_a_driver_without_a_device_and_one_without_video_are_facts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_libraries(monkeypatch, libcuda=FakeDriver(cuInit=100))
    facts = nvidia.read_nvidia()
    assert facts.cuda_error == "cuInit failed: CUDA_ERROR_NO_DEVICE (100)"
    assert facts.gpus == ()
    fake_libraries(monkeypatch, libcuda=FakeDriver())
    facts = nvidia.read_nvidia()
    assert (len(facts.gpus), facts.nvdec) == (1, None)
    assert facts.nvdec_error == "libnvcuvid.so.1 does not load"
    fake_libraries(monkeypatch)
    assert nvidia.read_nvidia().nvdec is None
