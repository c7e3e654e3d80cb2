"""What every test begins with: float64, one thread, a fixed seed, no parameters of others."""

import pyro
import pytest
import torch

SEED = 20


@pytest.fixture(autouse=True)
def float64():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(autouse=True)
def seeded():
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        pyro.set_rng_seed(SEED)
        yield


@pytest.fixture(autouse=True)
def no_params():
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()
