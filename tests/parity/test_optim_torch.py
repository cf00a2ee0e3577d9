# SPDX-License-Identifier: Apache-2.0
"""AdamW, clipping and schedules against PyTorch."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import Parameter, Tensor

from mindformers.core.clip_grad import ClipGradNorm
from mindformers.core.lr import CosineWithWarmUpLR
from mindformers.core.optim import AdamW

torch = pytest.importorskip("torch", reason="extra `test`")

SHAPES = [(37, 19), (8, 16), (16,), (3, 5, 2)]
STEPS = 20


def draw(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return [(scale * rng.standard_normal(s)).astype(np.float32) for s in SHAPES]


@pytest.mark.parametrize("betas", [(0.9, 0.95), (0.9, 0.999)], ids=["betas .9 .95", "betas .9 .999"])
@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e3], ids=["grads 1", "grads 1e-6, near eps", "grads 1e3"])
@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE], ids=["graph", "pynative"])
def test_adamw_equals_torch_over_20_steps_with_groups_and_schedule(mode, scale, betas):
    ms.set_context(mode=mode)
    ours = [Parameter(Tensor(x), name=f"p{i}") for i, x in enumerate(draw(0))]
    theirs = [torch.nn.Parameter(torch.from_numpy(x.copy())) for x in draw(0)]
    decayed = [0, 1, 3]
    optimizer = AdamW(
        [
            {"params": [ours[i] for i in decayed], "weight_decay": 0.1},
            {"params": [ours[2]], "weight_decay": 0.0},
            {"order_params": ours},
        ],
        CosineWithWarmUpLR(1e-2, 4, STEPS, lr_end=1e-3),
        betas=betas,
        eps=1e-8,
    )
    reference = torch.optim.AdamW(
        [
            {"params": [theirs[i] for i in decayed], "weight_decay": 0.1},
            {"params": [theirs[2]], "weight_decay": 0.0},
        ],
        lr=1.0,
        betas=betas,
        eps=1e-8,
    )
    for step in range(STEPS):
        progress = (step - 4) / (STEPS - 4)
        lr = 1e-2 * step / 4 if step < 4 else 1e-3 + 9e-3 * 0.5 * (1 + np.cos(np.pi * progress))
        for group in reference.param_groups:
            group["lr"] = float(lr)
        grads = draw(step + 1, scale)
        for param, grad in zip(theirs, grads, strict=True):
            param.grad = torch.from_numpy(grad.copy())
        reference.step()
        optimizer(tuple(map(Tensor, grads)))
        for mine, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(mine.asnumpy(), other.detach().numpy(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("max_norm", [0.5, 1e4])
def test_clip_grad_norm(max_norm):
    ms.set_context(mode=ms.GRAPH_MODE)
    grads = draw(7, 3.0)
    tensors = [torch.nn.Parameter(torch.zeros(g.shape)) for g in grads]
    for tensor, grad in zip(tensors, grads, strict=True):
        tensor.grad = torch.from_numpy(grad.copy())
    expected = torch.nn.utils.clip_grad_norm_(tensors, max_norm)
    clipped, norm = ClipGradNorm(max_norm)(ms.mutable(tuple(map(Tensor, grads))))
    np.testing.assert_allclose(norm.asnumpy(), expected.numpy(), rtol=1e-6)
    for mine, other in zip(clipped, tensors, strict=True):
        np.testing.assert_allclose(mine.asnumpy(), other.grad.numpy(), rtol=1e-6, atol=1e-6)
