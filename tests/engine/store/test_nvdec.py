"""Which decoder a machine gets, and which clips it takes; told by facts of a driver, no GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
from dfmtest_dali import SOFTWARE

from dfm_engine.errors import EnvironmentUnfit, UsageError
from dfm_engine.faces.pictures import PyavReader
from dfm_engine.machinery import open_reader
from dfm_engine.nvidia import Gpu, NvidiaFacts, read_nvidia
from dfm_engine.store import dali_reader
from dfm_engine.store.dali_reader import DaliReader
from dfm_engine.store.nvdec import gpu_router, gpu_spec, why_not_dali
from dfm_engine.store.routing import Stream

HOPPER = NvidiaFacts(
    gpus=(Gpu(name="H200", compute_capability=(9, 0), memory_bytes=1 << 37),),
    nvdec={"h264": 7, "hevc": 7},
    nvdec_sizes={"h264": (48, 16, 4096, 4096)},
)


def test_the_gpus_graph_keeps_every_decoder_busy() -> None:
    spec = gpu_spec(HOPPER)
    assert spec.source == "nvdec"
    assert spec.device_id == 0
    assert spec.threads >= 2 * 7
    assert spec.batch_size >= spec.threads


def test_the_devices_own_sizes_decide_the_route() -> None:
    router = gpu_router(HOPPER)
    stream = Stream(
        container="mov",
        codec="h264",
        profile="High",
        pix_fmt="yuv420p",
        width=256,
        height=256,
        frames=9,
        listed=9,
    )
    assert router(stream, 9).to == "nvdec"
    assert router(replace(stream, width=40), 9).reason.startswith("too-small")
    assert router(replace(stream, codec="hevc", profile="Main"), 9).reason.startswith("codec")
    unsaid = gpu_router(replace(HOPPER, nvdec_sizes={"h264": (0, 0, 0, 0)}))
    assert unsaid(stream, 9).to == "nvdec"
    assert unsaid(replace(stream, width=40), 9).reason.startswith("too-small")


def test_why_dali_cannot_be_used_is_said_in_words() -> None:
    assert why_not_dali(HOPPER) == ""
    assert "libnvcuvid" in why_not_dali(
        replace(HOPPER, nvdec=None, nvdec_error="libnvcuvid.so.1 does not load")
    )
    with pytest.raises(EnvironmentUnfit, match=r"no NVIDIA driver here.*--decode auto or pyav"):
        gpu_spec(NvidiaFacts(cuda_error="no NVIDIA driver here"))


def test_decode_says_what_reads_the_clips_of_a_build(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(open_reader("pyav", "cuda"), PyavReader)
    assert isinstance(open_reader("auto", "cpu"), PyavReader)
    with pytest.raises(UsageError, match="--decode takes auto, pyav, dali, found 'nvdec'"):
        open_reader("nvdec", "cpu")
    if not read_nvidia().gpus:
        assert isinstance(open_reader("auto", "cuda"), PyavReader)
        with pytest.raises(EnvironmentUnfit) as refused:
            open_reader("dali", "cpu")
        assert refused.value.exit_code == 4
    monkeypatch.setattr("dfm_engine.store.nvdec.why_not_dali", lambda: "")
    monkeypatch.setattr(dali_reader, "gpu_spec", lambda: SOFTWARE)
    opened = open_reader("auto", "cuda")
    assert isinstance(opened, DaliReader)
    assert opened.name.startswith("dali 2")
