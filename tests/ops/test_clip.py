"""Gradients that are too long, made shorter: each row for itself."""

import math

import torch

from fedsynsam.ops.clip import clip_rows_


def test_rows_are_clipped_as_pytorch_clips_each() -> None:
    rows = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)) * torch.tensor(
        [[0.01], [0.1], [1.0], [9.0]]
    )
    expected = []
    for row in rows:
        parameter = torch.nn.Parameter(torch.zeros(1000))
        parameter.grad = row.clone()
        torch.nn.utils.clip_grad_norm_([parameter], 3.0)
        expected.append(parameter.grad)
    clipped = rows.clone()
    assert clip_rows_(clipped, 3.0) is clipped
    torch.testing.assert_close(clipped, torch.stack(expected), rtol=1e-5, atol=0)
    assert torch.equal(clipped[0], rows[0]), "a short one keeps its bits"
    assert (rows.norm(dim=1) > 3).tolist() == [False, True, True, True]
    torch.testing.assert_close(clipped[1:].norm(dim=1), torch.full((3,), 3.0), rtol=1e-5, atol=0)


def test_zero_stays_and_what_is_not_finite_is_seen() -> None:
    rows = torch.zeros(3, 8)
    rows[1, 2], rows[2, 2] = math.inf, math.nan
    clip_rows_(rows, 1.0)
    assert torch.equal(rows[0], torch.zeros(8))
    assert rows[1].isnan().any()
    assert rows[2].isnan().all()
