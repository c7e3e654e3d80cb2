import math

import pyro
import pytest
import torch

import pyro_ebm as ebm
from pyro_ebm.distributions import Boltzmann
from pyro_ebm.zoo.autoregressive import Autoregressive
from pyro_ebm.zoo.base import Generative, Likelihood
from pyro_ebm.zoo.diffusion import Diffusion
from pyro_ebm.zoo.ebm import EBM
from pyro_ebm.zoo.flow import Flow
from pyro_ebm.zoo.gan import GAN
from pyro_ebm.zoo.training import Training
from pyro_ebm.zoo.vae import VAE


def short_ebm(training=None, objective=None, event_shape=(2,)):
    energy = ebm.energies.MLP(event_shape, hidden_sizes=(16,))
    return EBM(energy, objective, training or Training(num_steps=5), warmup_steps=20, num_draws=10)


def short_vae(training=None, event_shape=(2,)):
    return VAE(event_shape, 1, (16,), training or Training(num_steps=5), num_importance=7)


def short_gan(training=None, loss="non-saturating"):
    return GAN((2,), 2, (16,), loss, training=training or Training(num_steps=5))


def short_diffusion(training=None, network="noise", sampler="ancestral"):
    plan = training or Training(num_steps=5)
    return Diffusion((2,), network, (16,), 10, sampler, training=plan)


def short_flow(training=None, layer="coupling"):
    return Flow((2,), layer, 3, (16,), training or Training(num_steps=5))


def short_autoregressive(training=None, **kwargs):
    return Autoregressive((2,), (16,), 3, training or Training(num_steps=5), **kwargs)


MODELS = {
    "ebm": short_ebm,
    "ebm by cd": lambda: short_ebm(
        objective=ebm.objectives.ContrastiveDivergence(ebm.kernels.MALA(step_size=0.1))
    ),
    "ebm by dsm": lambda: short_ebm(objective=ebm.objectives.DenoisingScoreMatching(sigma=0.3)),
    "vae": short_vae,
    "gan": short_gan,
    "wasserstein gan": lambda: short_gan(loss="wasserstein"),
    "diffusion": short_diffusion,
    "diffusion by energy": lambda: short_diffusion(network="energy", sampler="langevin"),
    "coupling flow": short_flow,
    "autoregressive flow": lambda: short_flow(layer="autoregressive"),
    "autoregressive": short_autoregressive,
}


@pytest.mark.parametrize("name", MODELS)
def test_contract_is_kept(name):
    model = MODELS[name]()
    with pytest.raises(RuntimeError, match="not fitted"):
        model.sample(3)
    before = [p.detach().clone() for p in model.parameters()]
    x = torch.randn(100, 2)
    assert model.fit(x, progress=False) is model
    assert model.is_fitted
    assert all(len(record) == 5 for record in model.history.values())
    moved = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert sum(moved) >= len(moved) - 1  # the additive constant of an energy has no gradient
    draws = model.sample(7)
    assert draws.shape == (7, 2)
    assert not draws.requires_grad
    assert model.typicality(x).shape == (100,)
    assert not model.typicality(x).requires_grad
    kind, value, std_error = model.log_prob(x)
    assert (value is None) == (kind == "none")
    assert value is None or value.shape == (100,)
    assert (std_error is None) == (kind in ("exact", "none"))
    assert std_error is None or std_error.shape == (100,)
    assert model.num_parameters == sum(p.numel() for p in before)


@pytest.mark.parametrize("name", MODELS)
def test_training_leaves_the_global_parameter_store_alone(name):
    pyro.clear_param_store()
    pyro.param("mine", torch.zeros(()))
    MODELS[name]().fit(torch.randn(100, 2), progress=False)
    assert list(pyro.get_param_store().keys()) == ["mine"]


@pytest.mark.parametrize("name", MODELS)
def test_one_seed_gives_one_model(name):
    x = torch.randn(100, 2)

    def draws():
        pyro.set_rng_seed(3)
        return MODELS[name]().fit(x, progress=False).sample(4)

    assert torch.equal(draws(), draws())


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.randn(100, 3), r"x must have shape \(n, 2\) .* got \(100, 3\)"),
        (torch.randn(1, 2), "at least 2"),
        (torch.tensor([[0.0, 1.0], [math.nan, 1.0]]), "1 of 2 rows are not"),
    ],
)
def test_bad_data_is_refused_at_the_edge(make, x, message):
    with pytest.raises(ValueError, match=message):
        make().fit(x, progress=False)


@pytest.mark.filterwarnings("ignore:Encountered NaN:UserWarning")  # Pyro's own, before the error
@pytest.mark.parametrize(
    "make", [short_ebm, short_vae, short_gan, short_diffusion, short_flow, short_autoregressive]
)
def test_divergence_is_raised(make):
    model = make(Training(num_steps=50, lr=1e300))
    with pytest.raises(RuntimeError, match=r"training diverged: the [a-z ]*loss is .* at step"):
        model.fit(torch.randn(100, 2), progress=False)
    assert not model.is_fitted


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="num_steps must be positive, got 0"):
        Training(num_steps=0)
    with pytest.raises(ValueError, match="latent_dim must be at least 1, got 0"):
        VAE((2,), latent_dim=0)
    with pytest.raises(
        ValueError, match=r"energy must be a pyro_ebm\.energies\.Energy.* got tuple"
    ):
        EBM((2,))


def test_model_without_a_score_says_so():
    class Mute(Generative):
        def fit(self, x, progress=True):
            return self

        def sample(self, num_samples):
            return torch.zeros(num_samples, 2)

        def log_prob(self, x):
            return Likelihood("none")

    with pytest.raises(NotImplementedError, match="define typicality"):
        Mute((2,)).typicality(torch.zeros(3, 2))


def linear_vae(num_importance):
    """A VAE whose x is exactly Gaussian; its guide is the prior: bounded weights."""
    vae = VAE((4,), latent_dim=2, hidden_sizes=(), num_importance=num_importance).double()
    unit = math.log(math.expm1(1 - 1e-4))  # what the guide maps to a scale of one
    with torch.no_grad():
        for p in vae.parameters():
            p.copy_(0.5 * torch.randn_like(p))
        vae.encoder[0].weight.zero_()
        vae.encoder[0].bias.copy_(torch.tensor([0.0, 0.0, unit, unit]))
    vae.history["loss"] = [0.0]
    w, b = vae.decoder[0].weight, vae.decoder[0].bias
    scale = vae.likelihood(torch.zeros(2).double()).base_dist.scale
    covariance = (w @ w.T + torch.diag(scale**2)).detach()
    return vae, torch.distributions.MultivariateNormal(b.detach(), covariance)


def test_importance_weighted_bound_approaches_the_exact_likelihood_from_below():
    vae, exact = linear_vae(1)
    x = exact.sample((20,))
    gaps = []
    for vae.num_importance in (1, 10, 100):
        kind, value, _ = vae.log_prob(x.repeat(40, 1))
        gap = (value - exact.log_prob(x).repeat(40)).reshape(40, 20).mean(1)
        assert kind == "bound"
        assert gap.mean() < 5 * gap.std() / math.sqrt(40)
        gaps.append(gap.mean().item())
    assert gaps[0] < gaps[1] < gaps[2]
    vae.num_importance = 10_000
    _, value, std_error = vae.log_prob(x)
    z_score = (value - exact.log_prob(x)) / std_error
    assert z_score.abs().max() < 5
    assert z_score.std() > 0.3


def test_draws_of_a_linear_vae_have_its_exact_moments():
    vae, exact = linear_vae(1)
    x = vae.sample(20_000)
    error = exact.covariance_matrix.diagonal().div(len(x)).sqrt()
    assert ((x.mean(0) - exact.mean).abs() < 5 * error).all()


def test_ebm_recovers_a_gaussian():
    loc, precision = torch.tensor([1.0, -2.0]), torch.tensor([1.0, 4.0])
    truth = ebm.energies.Gaussian(loc, precision)
    x = truth.sample(2000)
    start = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.ones(2))
    energy = 1.0 * ebm.energies.Gaussian(*start)  # a weighted energy does not know its log Z
    objective = ebm.objectives.PersistentCD(ebm.kernels.MALA(step_size=0.1), 500, num_steps=5)
    model = EBM(energy, objective, Training(num_steps=600, batch_size=2000, lr=0.05))
    draws = model.fit(x, progress=False).sample(2000)
    assert model.history["step size"][-1] != 0.1
    for moment in (lambda x: x, lambda x: (x - x.mean(0)).square()):
        a, b = moment(x), moment(draws)
        # the chains' own noise, averaged by the falling rate, is below that of the data
        error = (a.var(0) / len(a) * 2 + b.var(0) / len(b)).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() < 5 * error).all()
    diagnostics = model.mcmc.diagnostics()
    assert not sum(map(len, diagnostics["divergences"].values()))


@pytest.mark.parametrize("knows_log_z", [True, False])
def test_ebm_recovers_spins_in_a_field(knows_log_z):
    """By its likelihood, or by the chains that it has where none are given; over all 16 points."""
    field = torch.tensor([0.9, -0.3, 0.1, -0.6])
    truth = ebm.energies.Ising((4,), 0.4, field, periodic=False)
    points = Boltzmann(truth).enumerate_support()
    x = points[Boltzmann(truth).log_prob(points).exp().multinomial(4000, replacement=True)]
    start = torch.nn.Parameter(torch.tensor(0.0)), torch.nn.Parameter(torch.zeros(4))
    ising = ebm.energies.Ising((4,), *start, periodic=False)
    energy = ising if knows_log_z else 1.0 * ising
    plan = Training(num_steps=300, batch_size=4000, lr=0.05)
    model = EBM(energy, training=plan, warmup_steps=20, num_draws=20).fit(x, progress=False)
    kind, log_p, _ = model.log_prob(points)
    assert kind == "exact"
    assert abs(log_p.exp().sum() - 1) < 1e-6
    draws = model.sample(4000)

    def moments(x):
        return torch.cat([x, x[:, :1] * x[:, 1:2], x[:, 1:2] * x[:, 2:3]], 1).double()

    expected = log_p.exp().double() @ moments(points)  # of the law that was learned
    spread = moments(draws).std(0)
    assert ((moments(draws).mean(0) - expected).abs() < 5 * spread / 4000**0.5).all()
    # the noise of 256 chains is averaged over the last updates, in which the rate falls
    assert ((moments(x).mean(0) - expected).abs() < 5 * spread / 256**0.5).all()
    assert (model.chains is None) == knows_log_z


def test_chains_over_discrete_values_begin_anywhere_if_training_has_none():
    objective = ebm.objectives.PseudoLikelihood()
    energy = ebm.energies.Potts((3, 3), 3, torch.nn.Parameter(torch.tensor(0.1)))
    model = EBM(energy, objective, Training(num_steps=2), warmup_steps=2, num_draws=2)
    model.fit(torch.randint(3, (50, 3, 3)).double(), progress=False)
    assert model.noise is None
    assert model.mcmc is None
    assert model.sample(30).unique().tolist() == [0, 1, 2]


def test_draws_continue_the_persistent_chains():
    model = short_ebm().fit(torch.randn(100, 2), progress=False)
    starts = model.sample(300) if model.mcmc is None else None
    assert starts.shape == (300, 2)
    first = model.mcmc.initial_params["x"]
    chains = model.objective.chains["x"]
    assert torch.equal(first[:256].sort(0).values, chains.sort(0).values)


def test_draws_begin_at_chains_in_proportion_to_their_weights():
    """Two heaps that no chain leaves, drawn alike and weighted 4 to 1 by the energy."""

    def law(weights):
        return ebm.energies.GaussianMixture(weights, torch.tensor([[-8.0], [8.0]]), 0.5)

    objective = ebm.objectives.Jarzynski(
        ebm.kernels.ULA(step_size=0.01), 1000, ess_threshold=0.0, start=ebm.Boltzmann(law([1, 1]))
    )
    energy = ebm.energies.Scaled(law([0.8, 0.2]), torch.nn.Parameter(torch.tensor(1.0)))
    plan = Training(num_steps=3, lr=1e-9)
    model = EBM(energy, objective, plan, warmup_steps=5, num_draws=5)
    model.fit(torch.randn(100, 1), progress=False)
    left = (objective.chains["x"] < 0).double()
    expected = (objective.log_weights["x"].softmax(0) * left.squeeze(-1)).sum()
    error = math.sqrt(0.16 / 1000)
    assert abs(expected - 0.8) < 5 * error
    assert abs((model.chains < 0).double().mean() - expected) < 5 * error
    assert abs((model.sample(1000) < 0).double().mean() - expected) < 5 * error


@pytest.mark.parametrize("step_size", [1e-3, 50.0])
def test_step_size_follows_the_acceptance(step_size):
    kernel = ebm.kernels.MALA(step_size=step_size)
    objective = ebm.objectives.PersistentCD(kernel, 64, num_steps=2)
    energy = ebm.energies.MLP((2,), hidden_sizes=(8,), base_scale=1.0)
    model = EBM(energy, objective, Training(num_steps=400, lr=1e-6))
    model.fit(torch.randn(100, 2), progress=False)
    late = torch.tensor(model.history["acceptance"][-100:])
    # each step moves it by 0.1 (a - a*) on the log scale: what is left of the way is the drift
    drift = math.log(model.history["step size"][-1] / model.history["step size"][-101]) / 10
    assert abs(late.mean().item() - 0.574 - drift) < 1e-3
    assert abs(drift) < 0.1
    assert kernel.step_size == model.history["step size"][-1] != step_size
