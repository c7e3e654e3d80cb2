"""Native code is held against the graph as far as the graph itself is determined."""

import functools
import shutil

import pytest
import torch
from posteriordb import posterior

import pyro_ebm as ebm
from pyro_ebm.agreement import check, check_native
from pyro_ebm.kernels.acceleration import Runner
from pyro_ebm.potential import Potential

F64 = torch.float64


def hilbert(num):
    """A matrix of condition number 3.5 ** num, about."""
    i = torch.arange(num, dtype=F64)
    return 1 / (i[:, None] + i + 1)


def solved(by, x):
    """A well-conditioned part, and one of condition number 1e13."""
    return 2 * x, by(hilbert(9), x)


LU = functools.partial(solved, torch.linalg.solve)
QR = functools.partial(
    solved, lambda a, b: torch.linalg.solve_triangular(*reversed_of(a, b), upper=True)[:, 0]
)


def reversed_of(a, b):
    q, r = torch.linalg.qr(a)
    return r, (q.T @ b)[:, None]


def point(num=9):
    return (torch.linspace(0.3, 2.0, num, dtype=F64),)


def test_another_order_of_the_same_sums_is_the_same_however_rounding_is_multiplied():
    with pytest.raises(RuntimeError, match="other numbers"):
        check(QR(*point()), LU(*point()))
    check_native(QR, LU, point())


@pytest.mark.parametrize("part", [0, 1])
def test_a_wrong_part_is_found_beside_an_ill_conditioned_one(part):
    """The second is known to 3 digits only: a wrong sign of it is still seen."""
    wrong = [(1 + 1e-6, 1.0), (1.0, -1.0)][part]

    def native(x):
        return tuple(w * y for w, y in zip(wrong, QR(x), strict=True))

    with pytest.raises(RuntimeError, match="native code gives other numbers"):
        check_native(native, LU, point())


def test_one_wrong_number_of_many_is_found():
    def native(x):
        fine, rough = QR(x)
        return fine + torch.eye(9, dtype=F64)[4] * 1e-6, rough

    with pytest.raises(RuntimeError, match="native code gives other numbers"):
        check_native(native, LU, point())


def test_what_the_last_bits_decide_cannot_be_checked():
    def chaos(by, x):
        for _ in range(100):
            x = by(x)
        return (x,)

    one = functools.partial(chaos, lambda x: 3.99 * x * (1 - x))
    other = functools.partial(chaos, lambda x: 3.99 * (x - x * x))
    with pytest.raises(RuntimeError, match="numbers"):
        check_native(other, one, (torch.linspace(0.1, 0.9, 50, dtype=F64),))


def test_a_choice_may_fall_either_way_where_it_is_a_tie_and_nowhere_else():
    def below(x):
        return (x > 1.0,)

    x = (torch.tensor([1.0 + 2.3e-16, 0.5, 2.0], dtype=F64),)
    for flipped, forgiven in ((0, True), (2, False)):

        def native(x, flipped=flipped):
            return (below(x)[0] ^ (torch.arange(3) == flipped),)

        if forgiven:
            check_native(native, below, x)
        else:
            with pytest.raises(RuntimeError, match="other numbers"):
                check_native(native, below, x)


def test_what_is_no_number_has_to_be_none():
    x = torch.tensor([-1.0, 4.0], dtype=F64)
    check_native(lambda x: x.sqrt(), lambda x: x**0.5, (x,))
    for other in (0.0, torch.inf):
        with pytest.raises(RuntimeError, match="other numbers"):
            check_native(lambda x, to=other: x.sqrt().nan_to_num(to), torch.sqrt, (x,))


def test_whole_numbers_and_none_are_left_as_they_are_and_no_generator_is_touched():
    def below(x, k):
        return LU(x)[1], k + 1, None

    def native(x, k):
        return QR(x)[1], k + 1, None

    state = torch.get_rng_state()
    check_native(native, below, (*point(), torch.arange(3)))
    with pytest.raises(RuntimeError, match="other numbers"):
        check_native(lambda x, k: (QR(x)[1], k + 2, None), below, (*point(), torch.arange(3)))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_random_function_is_told():
    with pytest.raises(RuntimeError, match="numbers"):
        check_native(torch.rand_like, torch.rand_like, point())


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_model_that_multiplies_rounding_runs_as_native_code():
    """The covariance of this Gaussian process has a condition number of 1e10."""
    model = posterior("gp_pois_regr").model
    kernel = ebm.kernels.ChEES(model)
    short = ebm.MCMC(kernel, 1, 40, 64, compile=False, disable_progbar=True)
    short.run()
    state = short.state._replace(length=16 * short.state.step_size)
    runner = Runner(kernel, Potential.of(model), state, 1000, True)
    assert runner.rung.name == "native"
    native = runner.rung.fn
    momentum, uniform, jitter = kernel.noise(state, torch.Generator().manual_seed(0), 1)
    args = state, (momentum, uniform, torch.ones_like(jitter))
    check_native(native, native.once, args)
    with pytest.raises(RuntimeError, match="other numbers"):
        check(native(*args), native.once(*args))
