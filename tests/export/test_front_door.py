"""What may enter a runner, what may not, and how a large call is cut up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dfm_engine.errors import ShapeError
from dfm_export.front_door import admit
from dfm_export.specs import GraphSpec, TensorSpec

SPEC = GraphSpec(
    "animate",
    (
        TensorSpec("features", "float32", ("sources", 2, 3)),
        TensorSpec("driving", "float32", ("batch", 4)),
    ),
    (TensorSpec("frame", "float32", ("batch", 3)), TensorSpec("mask", "uint8", ("batch",))),
)
CPU = torch.device("cpu")


def feeds(batch: int = 6, sources: int = 6) -> dict[str, Any]:
    return {
        "features": torch.arange(sources * 6.0).reshape(sources, 2, 3),
        "driving": torch.arange(batch * 4.0).reshape(batch, 4),
    }


def test_a_right_call_enters_without_a_copy() -> None:
    given_, out = feeds(), {"mask": torch.zeros(6, dtype=torch.uint8)}
    call = admit(SPEC, given_, out, device=CPU)
    assert (call.batch, call.sources) == (6, 6)
    assert list(call.feeds) == ["features", "driving"]
    assert all(call.feeds[name].data_ptr() == t.data_ptr() for name, t in given_.items())
    assert call.out["mask"] is out["mask"]
    assert (call.out["frame"].shape, call.out["frame"].dtype) == ((6, 3), torch.float32)


def test_what_speaks_dlpack_enters_without_a_copy() -> None:
    driving = np.ones((6, 4), dtype=np.float32)
    call = admit(SPEC, {**feeds(), "driving": driving}, None, device=CPU)
    assert call.feeds["driving"].data_ptr() == driving.ctypes.data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.pop("driving"), r"missing \['driving'\]"),
        (lambda f: f.update(kp=f["driving"]), r"unknown \['kp'\]"),
        (lambda f: f.update(driving=f["driving"].double()), r"must be float32 .* got float64"),
        (lambda f: f.update(driving=f["driving"].half()), "nothing is cast"),
        (lambda f: f.update(driving=f["driving"][0]), r"must be float32 \(batch, 4\), got .*\(4,"),
        (lambda f: f.update(driving=f["driving"][:, :3].contiguous()), r"got float32 \(6, 3\)"),
        (lambda f: f.update(driving=f["driving"].to("meta")), "is on meta, the runner on cpu"),
        (
            lambda f: f.update(features=f["features"][:1].expand(6, 2, 3)),
            r"strides \(0, 3, 1\).*pass one source, or call \.contiguous\(\)",
        ),
        (
            lambda f: f.update(driving=torch.ones(4, 6).T),
            r"strides \(1, 6\) for shape \(6, 4\).* call \.contiguous\(\)",
        ),
        (lambda f: f.update(driving=torch.ones(0, 4)), "has no rows"),
        (lambda f: f.update(features=f["features"][:4]), "6 rows from 4 sources"),
        (lambda f: f.update(driving=[[1.0] * 4]), "is a list; takes tensors"),
        (
            lambda f: f.update(driving=np.ones((6, 4), dtype=">f4")),
            "'driving', a ndarray, does not go through DLPack",
        ),
    ],
)
def test_a_wrong_call_is_refused_by_name(
    change: Callable[[dict[str, Any]], object], message: str
) -> None:
    wrong = feeds()
    change(wrong)
    with pytest.raises(ShapeError, match=message):
        admit(SPEC, wrong, None, device=CPU, who="fake-cpu")


def test_fewer_rows_than_the_profile_takes_are_refused() -> None:
    admit(SPEC, feeds(4, 4), None, device=CPU, min_batch=4)
    with pytest.raises(ShapeError, match=r"3 rows .* at least 4"):
        admit(SPEC, feeds(3, 3), None, device=CPU, min_batch=4)


def test_a_wrong_output_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"has outputs .*, not \['image'\]"):
        admit(SPEC, feeds(), {"image": torch.empty(6, 3)}, device=CPU)
    with pytest.raises(ShapeError, match="'frame' has 5 rows"):
        admit(SPEC, feeds(), {"frame": torch.empty(5, 3)}, device=CPU)


def test_one_row_may_be_expanded_for_it_is_contiguous() -> None:
    one = feeds(1, 1)
    one["features"] = one["features"].expand(1, 2, 3)
    assert admit(SPEC, one, None, device=CPU).batch == 1


def _animate(feeds: dict[str, torch.Tensor]) -> torch.Tensor:
    """Row i: the sums of its driving row and of its source."""
    rows, sources = len(feeds["driving"]), len(feeds["features"])
    each = feeds["features"].sum(dim=(1, 2)).repeat_interleave(rows // sources)
    return torch.stack([feeds["driving"].sum(dim=1), each, each], dim=1)


@given(
    sources=st.integers(1, 9), each=st.integers(1, 9), most=st.integers(1, 12), one=st.booleans()
)
def test_parts_cover_the_call_with_each_rows_own_source_at_one_size(
    sources: int, each: int, most: int, one: bool
) -> None:
    sources, each = (1, sources * each) if one else (sources, each)
    call = admit(SPEC, feeds(sources * each, sources), None, device=CPU)
    call.out["frame"].fill_(torch.nan)
    sizes = set()
    for part in call.parts(most):
        size = len(part.feeds["driving"])
        sizes.add((size, len(part.feeds["features"])))
        assert size <= most
        assert len(part.out["mask"]) == size
        assert all(tensor.is_contiguous() for tensor in (*part.feeds.values(), *part.out.values()))
        part.out["frame"].copy_(_animate(part.feeds))
    assert len(sizes) == 1  # a row's bits cannot depend on its part
    assert torch.equal(call.out["frame"], _animate(call.feeds))
