"""Chains come first in shape and last in memory, and nothing that is computed depends on it."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_ebm as ebm
from pyro_ebm.engine import compile_scan, loop
from pyro_ebm.kernels.transition import normal_like
from pyro_ebm.layout import (
    chains_innermost,
    copy_in_order,
    empty_like,
    memory_order,
    restored,
    stored,
)
from pyro_ebm.potential import Potential
from pyro_ebm.runs.draws import Draws

ORDERS = [(0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)]


@pytest.mark.parametrize("order", ORDERS)
def test_a_copy_lies_in_memory_in_the_order_asked_for(order):
    x = torch.randn(3, 4, 5)
    copy = copy_in_order(x, order)
    assert torch.equal(copy, x)
    assert memory_order(copy) == order
    assert copy.permute(order).is_contiguous()
    assert copy.data_ptr() != x.data_ptr()


@pytest.mark.parametrize("order", ORDERS)
def test_a_stack_of_what_was_stored_is_restored(order):
    rows = torch.randn(6, 3, 4, 5)
    stack = torch.stack([stored(row, order) for row in rows])
    assert torch.equal(restored(stack, order), rows)


@pytest.mark.parametrize("order", ORDERS)
def test_room_is_the_same_memory_twice(order):
    x = copy_in_order(torch.randn(3, 4, 5), order)
    room, found = empty_like(x, 7)
    room.copy_(torch.arange(room.numel()).view(room.shape))
    assert room.is_contiguous()
    assert found.shape == (7, 3, 4, 5)
    assert memory_order(found[0]) == order
    assert torch.equal(found, restored(room, order))


def test_few_chains_stay_outermost():
    assert chains_innermost(torch.zeros(15, 3)).is_contiguous()
    assert chains_innermost(torch.zeros(16, 3)).T.is_contiguous()


def test_noise_lies_as_the_chains_do():
    z = chains_innermost(torch.zeros(64, 3))
    noise = normal_like(z, torch.Generator().manual_seed(0), 5)
    assert noise.shape == (5, 64, 3)
    assert noise[0].stride() == z.stride()
    assert noise.unique().numel() == noise.numel()


def test_the_gradient_lies_as_the_chains_do_and_is_the_same():
    potential = Potential.of(two_sites)
    z = torch.randn(32, potential.dim)
    value, grad = potential.value_and_grad(z)
    value_innermost, grad_innermost = potential.value_and_grad(chains_innermost(z))
    torch.testing.assert_close(value_innermost, value)
    torch.testing.assert_close(grad_innermost, grad)
    assert memory_order(grad_innermost) == (1, 0)


def two_sites():
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    x = pyro.sample("x", dist.Normal(0.0, scale).expand([3]).to_event(1))
    pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=torch.tensor([1.0, -2.0, 0.5]))


@pytest.mark.slow
@pytest.mark.parametrize("innermost", [False, True])
def test_a_native_loop_of_loops_keeps_the_layout(innermost):
    def step(carry, row):
        (x,) = carry
        (by,) = row
        times = by.abs().max().mul(3).long().clamp(max=3)
        x = loop(lambda now: now[0] > 0, lambda now: (now[0] - 1, now[1] * 0.5 + by), (times, x))[
            1
        ]
        return (x.flip(0).contiguous(),), x.sin()

    x, rows = torch.randn(32, 3), torch.randn(4, 32, 3)
    if innermost:
        x, rows = chains_innermost(x), torch.stack([r.T for r in rows]).mT
    native = compile_scan(step, (x,), (rows,), 10)
    assert native.name == "native"
    (end,), kept = native.fn((x,), (rows,))
    expected, sines = (x,), []
    for row in rows:
        expected, sine = step(expected, (row,))
        sines.append(sine)
    torch.testing.assert_close(end, expected[0])
    torch.testing.assert_close(kept, torch.stack(sines))
    assert end.stride() == x.stride()
    assert kept[0].stride() == x.stride()


def test_draws_do_not_depend_on_the_layout():
    potential = Potential.of(ebm.Boltzmann(ebm.energies.Gaussian(torch.zeros(3), 1.0)))
    z = torch.randn(50, 20, 3) * 3 + 100
    moments = []
    for steps in (z, z.mT.contiguous().mT):
        draws = Draws(potential, 50, 20)
        for part in steps.split(17):
            draws.append(part, {"lp": part.sum(-1)})
        assert torch.equal(draws.values()["x"], z.transpose(0, 1))
        moments.append(draws.moments()["x"])
    expected = z.double().mean(0), z.double().var(0)
    for found in moments:
        torch.testing.assert_close(found.mean, expected[0])
        torch.testing.assert_close(found.variance, expected[1])
