from __future__ import annotations

import numpy as np
import pytest
import torch

from dfm_engine.errors import DfmError, ShapeError, UsageError
from dfm_engine.fomm import Keypoints, transfer
from dfm_engine.fomm.geometry import inverse_2x2, product_2x2
from dfm_engine.fomm.transfer import hull_area


def random_keypoints(rows: int, seed: int, *, points: int = 6) -> Keypoints:
    generator = torch.Generator().manual_seed(seed)
    value = 2 * torch.rand(rows, points, 2, generator=generator, dtype=torch.float64) - 1
    noise = torch.rand(rows, points, 2, 2, generator=generator, dtype=torch.float64)
    return Keypoints(value, torch.eye(2, dtype=torch.float64) + 0.6 * noise - 0.3)


def square(side: float) -> torch.Tensor:
    corners = [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [0.5, 0.25]]
    return side * torch.tensor([corners], dtype=torch.float64)


def test_the_first_driving_frame_leaves_the_source_where_it_is() -> None:
    source, driving = random_keypoints(1, 0), random_keypoints(5, 1)
    for mode in ("rel", "rel_adapt"):
        moved = transfer(source, driving, driving[0], mode=mode)
        torch.testing.assert_close(moved.value[0], source.value[0])
        assert moved.jacobian is not None
        assert source.jacobian is not None
        torch.testing.assert_close(moved.jacobian[0], source.jacobian[0])


def test_absolute_mode_is_the_driving_itself() -> None:
    driving = random_keypoints(3, 1)
    assert transfer(random_keypoints(1, 0), driving, driving[0], mode="abs") is driving


def test_adapted_scale_is_the_root_of_the_hull_areas() -> None:
    source, initial = Keypoints(square(1.5)), Keypoints(square(0.5))
    driving = Keypoints(square(0.5) + torch.tensor([0.1, -0.2]))
    plain = transfer(source, driving, initial, mode="rel").value - source.value
    adapted = transfer(source, driving, initial, mode="rel_adapt").value - source.value
    torch.testing.assert_close(plain[0, 0], torch.tensor([0.1, -0.2], dtype=torch.float64))
    torch.testing.assert_close(adapted, 3 * plain)


def test_relative_jacobian_composes_in_the_published_order() -> None:
    source, initial, driving = (random_keypoints(1, seed) for seed in range(3))
    matrices = [k.jacobian[0, 2].numpy() for k in (driving, initial, source)]  # pyright: ignore
    wanted = matrices[0] @ np.linalg.inv(matrices[1]) @ matrices[2]
    moved = transfer(source, driving, initial, mode="rel")
    assert moved.jacobian is not None
    np.testing.assert_allclose(moved.jacobian[0, 2].numpy(), wanted, atol=1e-12)
    kept = transfer(source, driving, initial, mode="rel_nojac")
    assert kept.jacobian is driving.jacobian
    torch.testing.assert_close(kept.value, moved.value)


def test_rows_of_many_sources_equal_one_source_each() -> None:
    source, initial, driving = (random_keypoints(4, seed) for seed in range(3))
    together = transfer(source, driving, initial, mode="rel_adapt")
    alone = [transfer(source[i], driving[i], initial[i], mode="rel_adapt") for i in range(4)]
    torch.testing.assert_close(together.value, Keypoints.cat(alone).value, rtol=0, atol=0)


def test_models_without_jacobians_transfer_values() -> None:
    source, driving = Keypoints(random_keypoints(1, 0).value), Keypoints(square(1))
    moved = transfer(source[0], random_without_jacobian(2), random_without_jacobian(1), mode="rel")
    assert moved.jacobian is None
    assert len(driving) == 1


def random_without_jacobian(rows: int) -> Keypoints:
    return Keypoints(random_keypoints(rows, 3).value)


def test_points_on_a_line_are_an_error_that_says_what_to_do() -> None:
    line = torch.linspace(-1, 1, 5, dtype=torch.float64)
    flat = Keypoints(torch.stack([line, 0.5 * line], dim=-1)[None])
    full = Keypoints(square(1))
    with pytest.raises(
        DfmError, match=r"(?s)source keypoints of row 0 span no area.*use mode 'rel'"
    ):
        transfer(flat, full, full, mode="rel_adapt")
    with pytest.raises(DfmError, match="initial driving keypoints"):
        transfer(full, full, flat, mode="rel_adapt")
    transfer(flat, full, full, mode="rel")


def test_wrong_calls_are_refused() -> None:
    one, two, three = (random_keypoints(rows, 0) for rows in (1, 2, 3))
    with pytest.raises(UsageError, match="found 'relative'"):
        transfer(one, two, one, mode="relative")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ShapeError, match="has 2 rows and cannot serve 3"):
        transfer(two, three, one, mode="rel")
    with pytest.raises(ShapeError, match="keypoint counts differ"):
        transfer(random_keypoints(1, 0, points=5), two, one, mode="rel")
    with pytest.raises(ShapeError, match="source or initial have none"):
        transfer(Keypoints(one.value), two, one, mode="rel")


def test_hull_area_of_a_known_shape() -> None:
    triangle = np.array([[0, 0], [4, 0], [0, 3], [1, 1]], dtype=np.float32)
    assert hull_area(triangle) == pytest.approx(6)
    assert hull_area(triangle[:2]) == 0
    assert hull_area(np.full((5, 2), np.nan)) == 0


def test_closed_form_matrices_equal_lapack() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 3, 7, 2, 2, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(inverse_2x2(a), torch.linalg.inv(a), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(product_2x2(a, b), a @ b, rtol=1e-12, atol=1e-12)
