r"""The exact log Z of the Ising model on a torus, without a field.

.. math::
    Z = \tfrac12 (2 \sinh 2K)^{nm/2} \Big[
        \prod_r 2 \cosh \tfrac m2 \gamma_{2r+1} + \prod_r 2 \sinh \tfrac m2 \gamma_{2r+1}
        + \prod_r 2 \cosh \tfrac m2 \gamma_{2r} + \prod_r 2 \sinh \tfrac m2 \gamma_{2r} \Big]

over :math:`r = 0, \dots, n - 1`, with
:math:`\cosh \gamma_q = \cosh 2K \coth 2K - \cos(\pi q / n)`, :math:`\gamma_q > 0`, except for
:math:`\gamma_0 = 2K + \log \tanh K`, which is negative below the critical coupling.
"""

from __future__ import annotations

__all__ = ["CRITICAL_COUPLING", "log_z_of_torus"]

import math

import torch
from torch import Tensor

CRITICAL_COUPLING = 0.5 * math.log(1 + math.sqrt(2))
"""The coupling at which the square lattice orders."""


def log_z_of_torus(coupling: Tensor, height: int, width: int) -> Tensor:
    r"""Evaluates Kaufman's formula, each bond counted once, in time linear in ``height``.

    All factors are divided by :math:`(2 \sinh 2K)^{-m/2} e^{m \gamma / 2}`, so that nothing
    overflows, or is lost at the critical coupling and at none. Differentiable in the coupling.

    References:
        | Crystal statistics II (Kaufman, 1949), https://doi.org/10.1103/PhysRev.76.1232

    Args:
        coupling: The coupling :math:`K \ge 0`, of any shape.
        height: The number of rows, n, three or more.
        width: The number of columns, m, three or more.

    Returns:
        Log Z in nats, with the shape of ``coupling``.

    Example:
        >>> log_z_of_torus(torch.tensor(0.3, dtype=torch.float64), 4, 4)
        tensor(12.7855, dtype=torch.float64)
    """
    k = coupling.clamp(min=1e-12).unsqueeze(-1)
    s = (2 * k).sinh()
    half = math.pi * torch.arange(1, 2 * height).to(k) / (2 * height)  # half of pi q / n, q > 0
    below = (1 - s).square() + 2 * s * half.sin().square()  # cosh 2K coth 2K - cos - 1, times s
    a = 2 * (below + s + (below * (below + 2 * s)).sqrt())  # 2 sinh 2K exp(gamma)
    largest, ratio = width / 2 * a.log(), (width * (2 * s / a).log()).exp()
    odd, even = slice(0, None, 2), slice(1, None, 2)
    log_p = width * (k + (2 * k.sinh()).log()).squeeze(-1)  # of gamma_0, with its sign
    log_q = width * (-k + (2 * k.cosh()).log()).squeeze(-1)
    rest = largest[..., even].sum(-1)
    cosh = rest + ratio[..., even].log1p().sum(-1)
    sinh = rest + (-ratio[..., even]).log1p().sum(-1)
    logs = torch.stack(
        [
            (largest + ratio.log1p())[..., odd].sum(-1),
            (largest + (-ratio).log1p())[..., odd].sum(-1),
            cosh + log_p,
            cosh + log_q,
            sinh + log_p,
            sinh + log_q,
        ],
        dim=-1,
    )
    top = logs.detach().amax(-1, keepdim=True)
    signs = logs.new_tensor([1.0, 1.0, 1.0, 1.0, 1.0, -1.0])
    return ((logs - top).exp() * signs).sum(-1).log() + top.squeeze(-1) - math.log(2)
