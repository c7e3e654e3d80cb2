"""Games: each player's gradient in closed form, and where they come to rest."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from laws import assert_close, assert_mean
from pyro.distributions import transforms
from pyro.infer import SVI
from test_score_matching import Skewed
from torch import nn, tensor
from torch.distributions import constraints
from torch.nn.functional import logsigmoid

import pyro_ebm as ebm
from pyro_ebm.energies import Energy
from pyro_ebm.objectives import Adversarial, FlowContrastive, NoiseContrastive

TEMPERATURE = 2.0


class Player(nn.Module):
    """A Gaussian that learns its mean and the logarithm of its scale."""

    def __init__(self, loc=0.0, log_scale=0.0):
        super().__init__()
        self.shape = nn.Parameter(tensor([loc, log_scale]))

    def forward(self):
        return dist.Normal(self.shape[0], self.shape[1].exp())


GRID = torch.linspace(-16, 16, 8001, dtype=torch.float64)


def slopes_of(objective, energy, player, rows):
    """The gradients of the surrogate, one row for each of some batches."""
    p = ebm.Boltzmann(energy, temperature=TEMPERATURE)
    wanted = [energy.weights, player.shape]
    found = [torch.autograd.grad(objective.surrogate(p, x).mean(), wanted) for x in rows]
    return [torch.stack(column) for column in zip(*found, strict=True)]


def test_each_player_follows_its_own_gradient():
    """The energy that of V, the generator minus that of KL(q || p), both by quadrature."""
    energy, player = Skewed(), Player(0.7, -0.4)
    rows = torch.randn(80, 200).exp()
    of_energy, of_player = slopes_of(Adversarial(player, 200), energy, player, rows)
    log_q = player().log_prob(GRID)
    q = log_q.softmax(0).detach()
    gap = (q * energy(GRID)).sum() - energy(rows).mean()
    (expected,) = torch.autograd.grad(gap / TEMPERATURE, energy.weights)
    assert_mean(of_energy, expected)
    step = GRID[1] - GRID[0]
    divergence = step * (log_q.exp() * (log_q + energy(GRID) / TEMPERATURE)).sum()
    (expected,) = torch.autograd.grad(-divergence, player.shape)
    assert_mean(of_player, expected)


def test_value_bounds_the_log_likelihood_from_above():
    """By KL(q || p), which a generator like the model makes zero, draw by draw."""
    energy = ebm.energies.Gaussian(tensor(1.0), 4.0)
    p = ebm.Boltzmann(energy, temperature=TEMPERATURE).with_energy(energy)
    x = torch.randn(7)
    exact = dist.Normal(1.0, math.sqrt(TEMPERATURE / 4.0)).log_prob(x)
    like = Adversarial(Player(1.0, math.log(TEMPERATURE / 4.0) / 2), 3)
    torch.testing.assert_close(like.surrogate(p, x), exact)
    unlike = Adversarial(Player(0.0, 0.0), 50)
    values = torch.stack([unlike.surrogate(p, x).detach() for _ in range(200)])
    kl = torch.distributions.kl_divergence(
        torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(1.0, math.sqrt(0.5))
    )
    assert_mean(values - exact, kl)


def test_truth_is_where_both_rest():
    """Gaussian data, energy and generator: E = a (x - loc)^2 / 2, with no softplus."""
    energy = Skewed(3.0, -0.5, 0.0)
    scale = math.sqrt(TEMPERATURE / 3.0)
    player = Player(-0.5, math.log(scale))
    rows = -0.5 + scale * torch.randn(80, 300)
    of_energy, of_player = slopes_of(Adversarial(player, 300), energy, player, rows)
    assert_mean(of_energy[:, :2], torch.zeros(2))
    assert_mean(of_player, torch.zeros(2))


class Line(Energy):
    """E(x) = a (x - loc)^2 / 2 with both to learn, and no word about log Z."""

    def __init__(self):
        super().__init__((1,))
        self.weights = nn.Parameter(tensor([1.0, 0.0]))

    def forward(self, x):
        a, loc = self.weights
        return 0.5 * a * (x - loc).square().sum(-1)


class Affine(nn.Module):
    """A flow of one affine layer."""

    def __init__(self):
        super().__init__()
        self.shape = nn.Parameter(tensor([0.0, 0.0]))

    def forward(self):
        base = dist.Normal(torch.zeros(1), 1.0).to_event(1)
        layer = transforms.AffineTransform(self.shape[:1], self.shape[1:].exp(), event_dim=1)
        return dist.TransformedDistribution(base, [layer])


GAMES = {
    "adversarial": lambda player: Adversarial(player, num_samples=500),
    "flow": lambda player: FlowContrastive(player),
}


@pytest.mark.parametrize("game", GAMES)
def test_svi_brings_both_players_to_the_truth(game):
    """N(1.5, 1/4): the player learns the law, and the energy with it, whatever optimizer."""
    energy, player = Line(), Affine()
    x = 1.5 + 0.5 * torch.randn(20_000, 1)

    def model(x):
        with pyro.plate("data", len(x), subsample_size=500) as i:
            pyro.sample("x", ebm.Boltzmann(energy), obs=x[i])

    def rate(name):
        return {"lr": 0.02 if "energy" in name else 0.05, "betas": (0.5, 0.99)}

    svi = SVI(model, ebm.no_guide, pyro.optim.Adam(rate), GAMES[game](player))
    tail = []
    for i in range(400):
        svi.step(x)
        if i >= 250:
            tail.append(torch.cat([energy.weights, player.shape]).detach())
    names = {name.split("$$$")[0] for name in pyro.get_param_store()}
    assert names >= {"x.energy", "x.generator" if game == "adversarial" else "x.noise"}
    tail = torch.stack(tail)
    # The last iterates depend on one another: their spread, undivided, is a safe error.
    truth = tensor([1 / x.var().item(), x.mean().item()])
    truth = torch.cat([truth, tensor([x.mean().item(), x.std().log().item()])])
    assert_close(tail.mean(0), truth, tail.std(0))
    assert bool((tail.std(0) < tensor([0.5, 0.1, 0.1, 0.1])).all())  # and it is at rest


def test_a_latent_gets_the_gradient_of_the_energy():
    energy = Skewed()
    z = torch.randn(6, requires_grad=True)
    p = ebm.Boltzmann(energy, temperature=TEMPERATURE)
    value = Adversarial(Player(), 10).surrogate(p, z)
    (slope,) = torch.autograd.grad(value.sum(), z)
    torch.testing.assert_close(slope, energy.score(z.detach()) / TEMPERATURE)


# Flow contrastive estimation.


@pytest.mark.parametrize("ratio", [1.0, 2.0])
def test_the_flow_lowers_what_the_energy_raises(ratio):
    energy, player, log_z = Skewed(), Player(0.7, 0.4), 0.6
    objective = FlowContrastive(player, ratio)
    objective.log_normalizer().data.fill_(log_z)
    rows = torch.randn(80, 300).exp()
    of_energy, of_player = slopes_of(objective, energy, player, rows)

    def logit(x):
        constant = log_z + math.log(ratio)
        return -energy(x) / TEMPERATURE - constant - player().log_prob(x)

    density = player().log_prob(GRID).exp() * (GRID[1] - GRID[0])
    value = logsigmoid(logit(rows)).mean() + ratio * (density * logsigmoid(-logit(GRID))).sum()
    first, second = torch.autograd.grad(value, [energy.weights, player.shape])
    assert_mean(of_energy, first)
    assert_mean(of_player, -second)


def test_with_a_flow_that_stands_still_it_is_noise_contrast():
    energy, player = Skewed(), Player(0.7, 0.4)
    p = ebm.Boltzmann(energy)
    x = torch.randn(9)
    values = []
    for objective in (FlowContrastive(player), NoiseContrastive(player)):
        pyro.set_rng_seed(4)
        values.append(objective.surrogate(p, x))
    torch.testing.assert_close(*values)


def test_a_flow_goes_on_from_a_fit_by_likelihood():
    """Its transforms keep the last point they saw, and a graph that the fit has freed."""

    class Flow(nn.Module):
        def __init__(self):
            super().__init__()
            self.spline = transforms.spline_coupling(2)

        def forward(self):
            base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
            return dist.TransformedDistribution(base, [self.spline])

    energy, x = ebm.energies.MLP((2,), (8,)), torch.randn(20, 2)
    for make in (FlowContrastive, Adversarial):
        flow = Flow()
        objective = make(flow)
        optimizer = torch.optim.Adam([*energy.parameters(), *flow.parameters()], lr=0.01)
        before = [p.detach().clone() for p in flow.parameters()]
        flow().log_prob(x).mean().backward()
        for _ in range(3):
            optimizer.zero_grad()
            (-objective.surrogate(ebm.Boltzmann(energy), x).mean()).backward()
            optimizer.step()
        assert not all(map(torch.equal, before, flow.parameters()))


def test_a_function_with_pyro_params_is_a_player_too():
    def generator():
        loc = pyro.param("loc", torch.zeros(1))
        scale = pyro.param("scale", torch.ones(1), constraint=constraints.positive)
        return dist.Normal(loc, scale).to_event(1)

    energy = Line()

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", ebm.Boltzmann(energy), obs=x)

    svi = SVI(model, ebm.no_guide, pyro.optim.Adam({"lr": 0.1}), Adversarial(generator))
    svi.step(torch.randn(20, 1) + 2)
    svi.step(torch.randn(20, 1) + 2)
    assert pyro.param("loc").item() != 0
    assert energy.weights[1].item() != 0


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda p, x: Adversarial(dist.Normal(0.0, 1.0)), "generator must be a torch.nn.Module"),
        (lambda p, x: FlowContrastive(dist.Normal(0.0, 1.0)), "noise must be a torch.nn.Module"),
        (lambda p, x: Adversarial(Player(), 0), "num_samples must be at least 1, got 0"),
        (
            lambda p, x: Adversarial(lambda: dist.Poisson(1.0)).surrogate(p, x),
            r"generator must have reparametrised draws \(rsample\), which Poisson",
        ),
        (
            lambda p, x: Adversarial(lambda: dist.Normal(0.0, 1.0).expand([2])).surrogate(p, x),
            r"generator must be a distribution over one point of site 'x'",
        ),
        (
            lambda p, x: FlowContrastive(lambda: dist.Uniform(0.0, 1.0)).surrogate(p, x),
            r"noise has no support over 3 of 3 data of site 'x'",
        ),
        (
            lambda p, x: Adversarial(Player()).surrogate(
                ebm.Boltzmann(lambda x: x, event_shape=(), support=constraints.positive), x + 9
            ),
            r"generator leaves the support .* of site 'x'",
        ),
    ],
)
def test_refuses_what_does_not_fit(use, message):
    with pytest.raises(ValueError, match=message):
        use(ebm.Boltzmann(Skewed()), tensor([-1.0, 2.0, 3.0]))


def test_refuses_a_conditional_energy():
    class Conditional(Energy):
        def __init__(self):
            super().__init__(())
            self.slope = nn.Parameter(tensor(1.0))

        def forward(self, x, y=0.0):
            return (x - self.slope * y).square()

    p = ebm.Boltzmann(partial(Conditional(), y=torch.randn(5)), event_shape=())
    with pytest.raises(ValueError, match=r"energy of site 'x' is conditional"):
        Adversarial(Player()).surrogate(p, torch.randn(5))


def test_refuses_a_player_whose_name_pyro_gives_to_another():
    energy = Line()

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", ebm.Boltzmann(energy), obs=x)

    def svi():
        return SVI(model, ebm.no_guide, pyro.optim.Adam({}), Adversarial(Affine()))

    svi().step(torch.randn(5, 1))
    with pytest.raises(ValueError, match=r"under the name 'x.generator'.*clear_param_store"):
        svi().step(torch.randn(5, 1))
    pyro.clear_param_store()
    svi().step(torch.randn(5, 1))


def test_refuses_an_energy_whose_name_pyro_gives_to_another():
    def step(energy):
        def model(x):
            with pyro.plate("data", len(x)):
                pyro.sample("x", ebm.Boltzmann(energy), obs=x)

        SVI(model, ebm.no_guide, pyro.optim.Adam({}), Adversarial(Affine())).step(torch.ones(5, 1))

    step(Line())
    with pytest.raises(ValueError, match=r"under the name 'x.energy'.*never move"):
        step(Line())
