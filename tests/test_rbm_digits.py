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
        return (-rbm(images.test.flatten(1)) - rbm.log_z()).mean().item()


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
