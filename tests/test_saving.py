"""A model that was saved and loaded is the model: the same numbers, bit for bit, or an error."""

import json
import os
import struct

import pyro
import pytest
import torch
from safetensors.torch import load_file, save_file

import pyro_ebm as ebm
from pyro_ebm.zoo import (
    EBM,
    GAN,
    RBM,
    VAE,
    Autoregressive,
    Diffusion,
    Flow,
    GaussianMixture,
    Generative,
    Independent,
    Likelihood,
    Training,
)

SHORT = Training(num_steps=4, lr=0.02)


def of_ebm(make, x, num_steps=3):
    """A model with its own settings, trained and drawn from for a few steps."""
    model = make(x)
    model.training_plan = Training(num_steps, batch_size=16, lr=1e-3)
    model.warmup_steps, model.num_draws = 10, 5
    return model


def weighted_sum(x):
    bias = torch.nn.Parameter(torch.tensor([0.3, -0.2]))
    known = ebm.energies.Gaussian(bias, torch.tensor([[2.0, 0.3], [0.3, 1.0]]))
    energy = ebm.energies.MLP((2,), (8,)) + 0.7 * known + known
    objective = ebm.objectives.PersistentCD(ebm.kernels.MALA(step_size=0.2), 16, 2, 0.1)
    return EBM(energy, objective, SHORT, ebm.kernels.HMC(step_size=0.1, num_steps=3), 10, 5)


def by_likelihood(x):
    loc = torch.nn.Parameter(torch.zeros(2))
    energy = ebm.energies.Gaussian(loc, torch.tensor([1.0, 2.0]))
    return EBM(energy, ebm.objectives.MaximumLikelihood(), SHORT, None, 10, 5)


def points(n=60):
    z = torch.randn(n, 2)
    return torch.stack([4 + z[:, 0].exp(), 0.5 * z[:, 1]], -1)


def bits(n=60):
    return (torch.rand(n, 2, 3) < 0.3).to(torch.get_default_dtype())


def grid(*shape):
    return lambda: (torch.rand(60, *shape) < 0.3) * 2.0 - 1.0


def labels(*shape, num_values=3):
    return lambda: torch.randint(num_values, (60, *shape)).to(torch.get_default_dtype())


def learned(*shape):
    return torch.nn.Parameter(0.3 * torch.randn(shape))


def of_energy(make, kernel=None):
    """An EBM of an energy that is not a network, with the settings of its kind."""

    def model(x):
        sampler = None if kernel is None else kernel()
        return EBM(make(), None, Training(3, batch_size=16, lr=1e-3), sampler, 4, 3)

    return model


ZOO = {
    "ising": (of_energy(lambda: ebm.energies.Ising((3, 4), learned())), grid(3, 4)),
    "ising in a field": (
        of_energy(lambda: ebm.energies.Ising((3, 3), 0.2, learned(3, 3), periodic=False)),
        grid(3, 3),
    ),
    "potts": (
        of_energy(lambda: ebm.energies.Potts((3, 3), 3, learned(), learned(3))),
        labels(3, 3),
    ),
    "graph": (
        of_energy(
            lambda: ebm.energies.IsingGraph(torch.tensor([[0, 1], [1, 2]]), learned(2), learned(3))
        ),
        grid(3),
    ),
    "chain": (
        of_energy(lambda: ebm.energies.ChainCRF(learned(4, 3), learned(3, 3))),
        labels(4),
    ),
    "trap": (
        of_energy(lambda: ebm.energies.Particles(3, 2, trap=1.0, epsilon=learned().exp().data)),
        lambda: 2 * torch.randn(60, 3, 2),
    ),
    "cell": (
        of_energy(lambda: ebm.energies.Particles(3, 2, cell=4.0, cutoff=1.5)),
        lambda: 4 * torch.rand(60, 3, 2),
    ),
    "plane": (lambda x: of_ebm(EBM.for_plane, x), points),
    "table": (lambda x: of_ebm(EBM.for_table, x), lambda: torch.randn(60, 4)),
    "images": (lambda x: of_ebm(EBM.for_images, x), lambda: torch.randn(60, 1, 3, 3)),
    "sum": (weighted_sum, points),
    "known log z": (by_likelihood, points),
    "rbm": (lambda x: RBM((2, 3), 4, SHORT, num_chains=8, num_sweeps=6), bits),
    "vae": (lambda x: VAE((2,), 1, (8, 6), SHORT, 5), points),
    "binary vae": (lambda x: VAE((2, 3), 1, (8,), SHORT, 5, binary=True), bits),
    "gan": (lambda x: GAN((2,), 2, (8,), training=SHORT), points),
    "wasserstein gan": (lambda x: GAN((2,), 2, (8,), "wasserstein", 3.0, SHORT), points),
    "coupling": (lambda x: Flow((2,), "coupling", 3, (8,), SHORT), points),
    "autoregressive flow": (
        lambda x: Flow((6,), "autoregressive", 2, (8,), SHORT),
        lambda: torch.randn(60, 6),
    ),
    "diffusion": (lambda x: Diffusion((2,), "noise", (8,), 5, training=SHORT), points),
    "diffusion by energy": (
        lambda x: Diffusion((2,), "energy", (8,), 5, "langevin", SHORT, 3),
        points,
    ),
    "autoregressive": (lambda x: Autoregressive((2,), (8,), 3, SHORT), points),
    "binary autoregressive": (
        lambda x: Autoregressive((2, 3), (8, 8), training=SHORT, binary=True),
        bits,
    ),
    "mixture": (lambda x: GaussianMixture((2,), 3, 1e-3), points),
    "independent": (lambda x: Independent((2,)), points),
    "binary independent": (lambda x: Independent((2, 3), binary=True), bits),
}


@pytest.fixture
def saved(tmp_path):
    """A VAE that was fitted and saved, and where."""
    model = VAE((2,), 1, (8,), SHORT, 5).fit(points(), progress=False)
    path = tmp_path / "model.safetensors"
    model.save(path)
    return model, path


def said(model, x):
    """All that a model says, from one seed."""
    pyro.set_rng_seed(7)
    kind, value, std_error = model.log_prob(x)
    return kind, value, std_error, model.typicality(x), model.sample(9)


def check_equal(a, b):
    assert type(a) is type(b)
    assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ZOO)
def test_loaded_model_says_the_same_bit_for_bit(name, dtype, tmp_path):
    torch.set_default_dtype(dtype)
    make, data = ZOO[name]
    x = data()
    model = make(x).fit(x, progress=False)
    before = said(model, x)
    path = tmp_path / "model.safetensors"
    model.save(path)
    assert os.listdir(tmp_path) == ["model.safetensors"]
    torch.set_default_dtype(torch.float32)
    state = torch.get_rng_state()
    loaded = Generative.load(path)
    assert torch.equal(state, torch.get_rng_state())
    torch.set_default_dtype(dtype)
    for a, b in zip(before, said(loaded, x), strict=True):
        check_equal(a, b)
    assert type(loaded) is type(model)
    assert loaded.history == model.history
    assert loaded.num_parameters == model.num_parameters
    assert loaded.num_evaluations == model.num_evaluations
    assert loaded.training_plan == model.training_plan if hasattr(model, "training_plan") else True
    loaded.fit(x, progress=False)  # it can learn again


def test_one_object_in_two_places_is_one_again(tmp_path):
    x = torch.randn(60, 4)
    model = of_ebm(EBM.for_table, x).fit(x, progress=False)
    model.save(tmp_path / "m")
    loaded = EBM.load(tmp_path / "m")
    assert loaded.sampler is loaded.objective.kernel
    assert loaded.sampler.step_size == model.sampler.step_size != 0.3  # tuned in training
    both = weighted_sum(None)
    both.fit(points(), progress=False).save(tmp_path / "sum")
    terms = EBM.load(tmp_path / "sum").energy.terms
    assert terms[0].terms[1].energy is terms[1]


def test_frozen_parameters_stay_frozen(tmp_path):
    model = weighted_sum(None)
    model.fit(points(), progress=False)
    model.energy.terms[0].terms[0].requires_grad_(False)
    model.save(tmp_path / "m")
    assert EBM.load(tmp_path / "m").num_parameters == model.num_parameters == 2


class Slope(ebm.energies.Energy):
    """A user's own energy, which keeps what its constructor takes."""

    def __init__(self, event_shape, start=1.0):
        super().__init__(event_shape)
        self.start = start
        self.slope = torch.nn.Parameter(torch.tensor(start))

    def forward(self, x):
        return (0.5 * x.square() + self.slope * x).sum(-1)


def test_classes_of_ones_own_are_passed_to_load(tmp_path):
    objective = ebm.objectives.DenoisingScoreMatching(sigma=0.2)
    model = EBM(Slope((2,), 0.5), objective, SHORT, None, 10, 5)
    model.fit(points(), progress=False).save(tmp_path / "m")
    with pytest.raises(ValueError, match=r"needs the class test_saving:Slope.*classes="):
        EBM.load(tmp_path / "m")
    loaded = EBM.load(tmp_path / "m", classes=[Slope])
    assert loaded.energy.slope == model.energy.slope != 0.5
    assert loaded.energy.start == 0.5


@pytest.mark.parametrize(
    ("energy", "message"),
    [
        (ebm.energies.Gaussian(torch.zeros(2), 1.0) + (lambda x: x.sum(-1)), "a plain callable"),
        (
            ebm.energies.ExponentialFamily(
                lambda x: x, torch.nn.Parameter(torch.zeros(2)), event_shape=(2,)
            ),
            r"its energy.statistics is <lambda>",
        ),
        (
            ebm.energies.Classifier((2,), torch.nn.Linear(2, 3)),
            r"its energy.network is of class Linear",
        ),
        (
            ebm.energies.FromDistribution(torch.distributions.Normal(0.0, 1.0)),
            r"its energy.distribution is of class Normal",
        ),
        (
            ebm.energies.Without(
                ebm.energies.Gaussian(torch.zeros(2), 1.0), lambda x: x.square().sum(-1), 3.0
            ),
            r"its energy.avoided is a plain callable",
        ),
        (
            ebm.energies.clamp(
                ebm.energies.Gaussian(torch.zeros(2), 1.0),
                torch.zeros(2),
                torch.tensor([True, False]),
            ),
            "Clamped does not keep its argument x",
        ),
    ],
)
def test_settings_that_no_file_can_hold_are_refused(energy, message, tmp_path):
    model = EBM(energy)
    model.history["loss"] = [0.0]
    with pytest.raises(ValueError, match=rf"(?s)this EBM cannot be saved: .*{message}.*classes="):
        model.save(tmp_path / "m")
    assert not os.listdir(tmp_path)


class Forgetful(Generative):
    def fit(self, x, progress=True):
        self.law = torch.distributions.Normal(x.mean(0), x.std(0))
        self.history["loss"] = [0.0]
        return self

    def sample(self, num_samples):
        return self.law.sample((num_samples,))

    def log_prob(self, x):
        return Likelihood("exact", self.law.log_prob(x).sum(-1))


class Mindful(Forgetful):
    """A user's own model, which keeps what it learns in buffers."""

    def __init__(self, event_shape):
        super().__init__(event_shape)
        self.register_buffer("loc", None)

    @property
    def law(self):
        return torch.distributions.Normal(self.loc, 1.0)

    def fit(self, x, progress=True):
        self.loc = x.mean(0)
        self.history["loss"] = [0.0]
        return self


def test_models_of_ones_own_are_saved_too(tmp_path):
    x = points()
    with pytest.raises(ValueError, match="keeps law neither as a parameter nor as a buffer"):
        Forgetful((2,)).fit(x).save(tmp_path / "m")
    model = Mindful((2,)).fit(x)
    model.save(tmp_path / "m")
    check_equal(Mindful.load(tmp_path / "m").log_prob(x).value, model.log_prob(x).value)


def test_model_that_is_not_fitted_is_not_saved(tmp_path):
    with pytest.raises(RuntimeError, match="not fitted"):
        VAE((2,)).save(tmp_path / "m")


def test_another_class_is_refused_by_both_names(saved):
    _, path = saved
    with pytest.raises(ValueError, match=r"holds a zoo.VAE, but was to be read as a zoo.GAN"):
        GAN.load(path)
    assert type(VAE.load(path)) is VAE


def test_file_that_is_cut_short_is_refused(saved):
    _, path = saved
    whole = path.read_bytes()
    for length in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"no whole .safetensors file \({length} bytes"):
            VAE.load(path)


def rewritten(path, metadata=None, tensors=None):
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    old = json.loads(data[8 : 8 + length])["__metadata__"]
    save_file(load_file(path) if tensors is None else tensors, path, old | (metadata or {}))


def test_another_format_is_refused_by_both_names(saved):
    _, path = saved
    rewritten(path, {"format": "pyro_ebm.zoo 2", "pyro_ebm": "9.1"})
    message = r"has the format 'pyro_ebm.zoo 2', but pyro_ebm .* reads 'pyro_ebm.zoo 1'.*9\.1"
    with pytest.raises(ValueError, match=message):
        VAE.load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="none of a model of pyro_ebm"):
        VAE.load(path)


def test_tensors_that_are_missing_left_over_or_of_another_shape_are_named(saved):
    _, path = saved
    tensors = load_file(path)
    for name, value, message in [
        ("raw_scale", None, "the file has no raw_scale"),
        ("more", torch.zeros(1), "the model has no more"),
        ("raw_scale", torch.zeros(3), r"raw_scale has shape \(3,\) in the file and \(2,\) in"),
    ]:
        changed = {k: t for k, t in tensors.items() if k != name}
        rewritten(path, tensors=changed if value is None else changed | {name: value})
        with pytest.raises(ValueError, match=message):
            VAE.load(path)
        rewritten(path, tensors=tensors)
    VAE.load(path)


def test_arguments_that_the_class_does_not_take_are_refused(saved):
    _, path = saved
    rewritten(path, {"arguments": json.dumps({"event_shape": {"tuple": [2]}, "depth": 3})})
    with pytest.raises(ValueError, match=r"written by pyro_ebm .* cannot be loaded .*depth"):
        VAE.load(path)


def test_no_class_of_another_package_is_built(saved):
    _, path = saved
    for name in ("os:system", "zoo.Reader", "torch.nn.Linear", "zoo.__doc__"):
        rewritten(path, {"class": name})
        with pytest.raises(ValueError, match=f"needs the class {name}"):
            Generative.load(path)


def test_a_failing_disk_leaves_the_old_file(saved, monkeypatch):
    model, path = saved
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        model.save(path)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]
