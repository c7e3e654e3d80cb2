"""An RBM on binary digits by persistent contrastive divergence, against maximum likelihood."""

import pyro
import pytest
import torch
from pyro.infer import SVI

import pyro_ebm as ebm
from pyro_ebm.energies import RBM
from pyro_ebm.zoo import Training

BY_MAXIMUM_LIKELIHOOD = -19.027
"""Nats per held-out image of 64 visible and 10 hidden units: 1,500 updates of Adam by the exact
gradient of all images at once, its rate falling from 0.03 to zero along a cosine."""
EPOCHS, BATCH = 300, 128


def held_out(rbm, images):
    with torch.no_grad():
        test = images.test.flatten(1).to(rbm.visible_bias)
        return (-rbm(test) - rbm.log_z()).mean().item()


@pytest.fixture(scope="module")
def images():
    return ebm.datasets.digits(binarize=True)


@pytest.fixture(scope="module")
def by_persistent_cd(images):
    pyro.set_rng_seed(0)
    train = images.train.flatten(1)
    rbm = RBM.initial(64, 10, train)
    plan = Training(EPOCHS * len(train) // BATCH, BATCH, lr=0.03, betas=(0.5, 0.999))
    kernel = ebm.kernels.Gibbs(num_sweeps=5)

    def model(v):
        with pyro.plate("images", len(v)):
            pyro.sample("v", ebm.Boltzmann(rbm), obs=v)

    optimizer = plan.optimizer()
    objective = ebm.objectives.PersistentCD(kernel, num_chains=256)
    svi = SVI(model, ebm.no_guide, optimizer, objective)
    for _ in range(plan.num_steps):
        with pyro.poutine.scale(scale=1 / BATCH):
            svi.step(train[torch.randint(len(train), (BATCH,))])
        optimizer.step()
    return rbm


# Of training and of test images, by that optimiser with so many hidden units.
LIKELIHOODS = {
    4: (-20.658122133150766, -20.95706959847373),
    8: (-18.813901865721043, -19.491590886548227),
    10: (-18.272267883456678, -19.027032918408572),
}


@pytest.mark.slow
@pytest.mark.parametrize("num_hidden", LIKELIHOODS)
def test_maximum_likelihood_of_digits_has_the_reference_values(num_hidden, images):
    torch.manual_seed(0)
    train = images.train.flatten(1).double()
    rbm = RBM.initial(64, num_hidden, train)
    optimizer = torch.optim.Adam(rbm.parameters(), lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    for _ in range(1500):
        optimizer.zero_grad()
        (rbm(train).mean() + rbm.log_z()).backward()
        optimizer.step()
        schedule.step()
    found = [-(rbm(train).mean() + rbm.log_z()).item(), held_out(rbm, images)]
    assert found == pytest.approx(LIKELIHOODS[num_hidden], abs=0.3)


def test_a_third_of_the_pixels_of_digits_is_black(images):
    both = torch.cat([images.train, images.test])
    assert both.double().mean().item() == pytest.approx(0.3230297022815804, abs=1e-9)


@pytest.mark.slow
def test_an_rbm_on_digits_is_within_half_a_nat_of_maximum_likelihood(by_persistent_cd, images):
    assert abs(held_out(by_persistent_cd, images) - BY_MAXIMUM_LIKELIHOOD) < 0.5


@pytest.mark.slow
def test_an_rbm_on_digits_is_above_that_of_scikit_learn(by_persistent_cd, images):
    neural_network = pytest.importorskip("sklearn.neural_network")
    found = []
    for rate in (0.003, 0.01, 0.03):
        other = neural_network.BernoulliRBM(10, learning_rate=rate, n_iter=EPOCHS, random_state=0)
        other.fit(images.train.flatten(1).numpy())
        parts = (other.components_.T, other.intercept_visible_, other.intercept_hidden_)
        found.append(held_out(RBM(*(torch.from_numpy(part).float() for part in parts)), images))
    assert held_out(by_persistent_cd, images) > max(found)
