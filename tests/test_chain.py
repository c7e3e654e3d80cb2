"""The chain of labels: exact sums, marginals, draws and labels, and learning in stock Pyro."""

import itertools

import pyro
import pytest
import torch
from laws import assert_close
from pyro.infer import SVI, Trace_ELBO
from torch import nn, tensor
from torch.nn.functional import one_hot

import pyro_ebm as ebm
from pyro_ebm.energies import ChainCRF, MarkovRandomField

T, K = 4, 3
CASES = {
    "one": lambda: ChainCRF(torch.randn(T, K), torch.randn(K, K)),
    "batch": lambda: ChainCRF(torch.randn(2, 3, T, K), torch.randn(K, K)),
    "transitions_of_each": lambda: ChainCRF(torch.randn(2, T, K), torch.randn(2, T - 1, K, K)),
    "lengths": lambda: ChainCRF(torch.randn(4, T, K), torch.randn(K, K), tensor([1, 2, 3, 4])),
    "single_step": lambda: ChainCRF(torch.randn(2, 1, K), torch.randn(K, K)),
}


@pytest.fixture(params=CASES)
def crf(request):
    return CASES[request.param]()


def listed(crf):
    """All labels, with shape ``(n, T)``, and their probabilities, ``(n, *batch)``."""
    labels = tensor(list(itertools.product(range(K), repeat=crf.event_shape[0]))).double()
    each = labels.reshape(-1, *(1,) * len(crf.batch_shape), crf.event_shape[0])
    return labels, (-crf(each) - crf.log_z()).exp()


def test_probabilities_sum_to_one(crf):
    _, probs = listed(crf)
    torch.testing.assert_close(probs.sum(0), torch.ones(crf.batch_shape))


def test_marginals_are_those_of_the_list(crf):
    labels, probs = listed(crf)
    hot = one_hot(labels.long(), K).double()
    torch.testing.assert_close(crf.marginals(), torch.einsum("n...,ntk->...tk", probs, hot))
    pairs = torch.einsum("n...,ntk,ntl->...tkl", probs, hot[:, :-1], hot[:, 1:])
    torch.testing.assert_close(crf.pair_marginals(), pairs)


def test_mode_is_the_most_probable(crf):
    labels, probs = listed(crf)
    assert torch.equal(crf.mode(), labels[probs.argmax(0)])


def test_draws_have_the_exact_labels_and_pairs(crf):
    num_draws = 20_000
    hot = one_hot(crf.sample(num_draws).long(), K).double()
    pairs = torch.einsum("n...tk,n...tl->...tkl", hot[..., :-1, :], hot[..., 1:, :]) / num_draws
    for drawn, exact in ((hot.mean(0), crf.marginals()), (pairs, crf.pair_marginals())):
        often = num_draws * exact * (1 - exact) > 50
        error = (exact * (1 - exact) / num_draws).sqrt()
        assert_close(drawn[often], exact[often], error[often])
        assert bool((drawn[~often] - exact[~often]).abs().lt(100 / num_draws).all())


def test_gradient_of_log_z_is_the_marginals(crf):
    unary = crf.unary.clone().requires_grad_()
    table = crf.transitions.clone().requires_grad_()
    other = ChainCRF(unary, table, crf.lengths if crf.has_lengths else None)
    of_unary, of_table = torch.autograd.grad(
        other.log_z().sum(), (unary, table), allow_unused=True
    )
    labels = crf.marginals()
    pairs = crf.pair_marginals()
    if crf.has_lengths:
        inside = torch.arange(T) < crf.lengths[:, None]
        labels = labels * inside[..., None]
        pairs = pairs * inside[:, 1:, None, None]
    torch.testing.assert_close(of_unary, labels)
    if table.dim() == 2:
        pairs = pairs.reshape(-1, K, K).sum(0)
    torch.testing.assert_close(torch.zeros(K, K) if of_table is None else of_table, pairs)


def test_a_padded_sequence_is_the_short_one():
    unary, table = torch.randn(2, T, K), torch.randn(K, K)
    padded = ChainCRF(unary, table, tensor([2, 3]))
    for i, length in enumerate((2, 3)):
        short = ChainCRF(unary[i, :length], table)
        torch.testing.assert_close(padded.log_z()[i], short.log_z())
        torch.testing.assert_close(padded.marginals()[i, :length], short.marginals())
        assert torch.equal(padded.mode()[i, :length], short.mode())
        y = torch.zeros(2, T)
        y[i, 0] = 2.0
        torch.testing.assert_close(padded(y)[i], short(y[i, :length]))
    assert bool(padded(torch.ones(2, T)).isinf().all())


def test_a_chain_is_a_random_field():
    unary, tables = torch.randn(3, 5, K), torch.randn(3, 4, K, K)
    edges = torch.stack([torch.arange(4), torch.arange(1, 5)], -1)
    for i in range(3):
        chain = ChainCRF(unary[i], tables[i])
        field = MarkovRandomField(unary[i], edges, tables[i])
        x = torch.randint(K, (6, 5)).to(unary)
        torch.testing.assert_close(chain(x), field(x))
        torch.testing.assert_close(chain.log_z(), field.log_z())
        torch.testing.assert_close(
            chain.conditionals(x).log_softmax(-1), field.conditionals(x).log_softmax(-1)
        )


def test_long_chains_neither_overflow_nor_lose_the_data():
    crf = ChainCRF(30 * torch.randn(500, K), 30 * torch.randn(K, K))
    assert bool(crf.log_z().isfinite())
    torch.testing.assert_close(crf.marginals().sum(-1), torch.ones(500))
    assert bool((-crf(crf.mode()) <= crf.log_z()).all())


def test_a_plain_elbo_learns_the_transitions():
    """No objective is needed: the known table comes back, within the error that data leave."""
    truth = tensor([[1.0, -1.0], [-1.5, 1.5]])
    x = torch.randn(300, 6)
    scale = tensor(1.3)
    y = ChainCRF(torch.stack([-scale * x, scale * x], -1), truth).sample(1).squeeze(0)

    weight, table = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(2, 2))

    def crf(x):
        return ChainCRF(torch.stack([-weight * x, weight * x], -1), table)

    def model(x, y):
        pyro.param("weight", weight)
        pyro.param("table", table)
        with pyro.plate("data", len(x)):
            pyro.sample("y", ebm.Boltzmann(crf(x)), obs=y)

    svi = SVI(model, ebm.no_guide, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    losses = [svi.step(x, y) for _ in range(120)]
    exact = (crf(x)(y) + crf(x).log_z()).sum()
    assert losses[-1] == pytest.approx(exact.item(), rel=1e-3)

    def loss(theta):
        unary = torch.stack([-theta[0] * x, theta[0] * x], -1)
        law = ChainCRF(unary, theta[1:].reshape(2, 2))
        return (law(y) + law.log_z()).sum()

    learned = torch.cat([weight.reshape(1), table.flatten()]).detach()
    off = learned - torch.cat([scale.reshape(1), truth.flatten()])
    information = torch.linalg.eigh(torch.autograd.functional.hessian(loss, learned))
    values = information.eigenvalues
    known = values > 1e-6 * values.max()  # all but a constant that is added to the table
    assert int(known.sum()) == 4
    assert_close((information.eigenvectors.T @ off)[known], 0.0, values[known].rsqrt())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ChainCRF(torch.zeros(4), torch.zeros(3, 3)), "unary must have shape"),
        (lambda: ChainCRF(torch.zeros(4, 3), torch.zeros(2, 2)), "transitions must have shape"),
        (lambda: ChainCRF(torch.zeros(4, 3), torch.zeros(4, 3, 3)), "transitions must have shape"),
        (
            lambda: ChainCRF(torch.zeros(2, 4, 3), torch.zeros(3, 3), tensor([0, 5])),
            "lengths must be from 1 to 4",
        ),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
