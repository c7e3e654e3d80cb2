"""Faults of energies, of their exact sums and draws, and of what makes them distributions."""

from mutants.fault import group

FAULTS = [
    *group(
        "energies/analytic.py",
        "test_energies.py -k 'log_z or sample or mean'",
        (
            "Gaussian: the sign of the determinant",
            "LOG_2PI - log_det)",
            "LOG_2PI + log_det)",
        ),
        (
            "Gaussian: precision for standard deviation",
            "self.loc + noise * self.precision.rsqrt()",
            "self.loc + noise * self.precision",
        ),
        (
            "Gaussian: draws by the lower factor",
            "upper = torch.linalg.cholesky(self.precision).mT",
            "upper = torch.linalg.cholesky(self.precision)",
        ),
        (
            "Laplace: one side",
            "return (2 * self.scale).expand(self.loc.shape).log().sum()",
            "return self.scale.expand(self.loc.shape).log().sum()",
        ),
        (
            "mixture of Gaussians: the scales are lost",
            "LOG_2PI).sum(-1) - scales.log().sum(-1)",
            "LOG_2PI).sum(-1)",
        ),
    ),
    *group(
        "energies/landscapes.py",
        "test_energies.py",
        (
            "two modes: the weight of the other one",
            "return torch.sigmoid(-self.theta)",
            "return torch.sigmoid(self.theta)",
        ),
        (
            "funnel: one dimension counts",
            "rest.shape[-1] * x0",
            "x0",
        ),
        (
            "double well: the tilt the other way",
            "(x.square() - 1).square() + self.tilt * x",
            "(x.square() - 1).square() - self.tilt * x",
        ),
        (
            "banana: a ridge that is not centred",
            "self.curvature * (x0.square() - self.scale.square())",
            "self.curvature * x0.square()",
        ),
        (
            "funnel: the scale for its root",
            "(x0 / 2).exp() * noise[:, 1:]",
            "x0.exp() * noise[:, 1:]",
        ),
    ),
    *group(
        "energies/base.py",
        "test_energies.py test_energy_algebra.py",
        (
            "score is grad",
            "return -self.grad(x, create_graph)",
            "return self.grad(x, create_graph)",
        ),
        (
            "a difference is a sum",
            "Scaled(_as_energy(other, self), -1.0)",
            "Scaled(_as_energy(other, self), 1.0)",
        ),
        (
            "a temperature multiplies",
            "self.energy(x) / self.temperature.to(x.dtype)",
            "self.energy(x) * self.temperature.to(x.dtype)",
        ),
        (
            "mixture: the sign of log Z of its parts",
            "self.weights.log() - self._log_z_of_parts()",
            "self.weights.log() + self._log_z_of_parts()",
        ),
    ),
    *group(
        "energies/whitened.py",
        "test_energies.py test_training.py -k 'whitened or whitening'",
        (
            "whitened: the Jacobian is lost",
            "self.energy.log_z() + self.scale_tril.diagonal().log().sum()",
            "self.energy.log_z()",
        ),
    ),
    *group(
        "energies/lattice.py",
        "test_discrete_energies.py test_lattice.py -k 'sweep or conditionals or log_z or strip'",
        (
            "Ising sweep: half the coupling",
            "2 * beta * self.coupling, x.new_ones(())",
            "beta * self.coupling, x.new_ones(())",
        ),
        (
            "Ising sweep: a field that is not tempered",
            "shift = shift + 2 * beta * self.field",
            "shift = shift + 2 * self.field",
        ),
        (
            "Potts sweep: a field that is not tempered",
            "logits.append((around + fields[k] if fields else around) * beta)",
            "logits.append(around * beta + fields[k] if fields else around * beta)",
        ),
        (
            "Kaufman for an odd antiferromagnet",
            "if even or bool(self.coupling >= 0):",
            "if even or bool(self.coupling.isfinite()):",
            "test_lattice.py",
        ),
    ),
    *group(
        "energies/grid.py",
        "test_lattice.py test_discrete_energies.py -k 'bonds or colour or invariant'",
        (
            "an odd ring in two colours",
            "colours[-1] = 2",
            "colours[-1] = 0",
        ),
        (
            "neighbours on one side",
            "total.add_(x.roll(-1, dim))",
            "total.add_(x.roll(1, dim))",
            "test_lattice.py test_discrete_energies.py -k 'conditionals or invariant'",
        ),
    ),
    *group(
        "energies/elimination.py",
        "test_discrete_energies.py -k log_z",
        (
            "tables that are not turned with their edge",
            "table = table if i < j else table.T",
            "table = table if i != j else table.T",
        ),
        (
            "a sum over the wrong axis",
            "summed = total.logsumexp(scope.index(site) - len(scope))",
            "summed = total.logsumexp(-1)",
        ),
    ),
    *group(
        "energies/graphs.py",
        "test_discrete_energies.py -k 'conditionals or sweep'",
        (
            "random field: tables for the other end",
            "tables = torch.stack([tables.mT, tables])",
            "tables = torch.stack([tables, tables.mT])",
        ),
        (
            "Ising on a graph: half the log odds",
            "local.mul_(2 * (beta[arrows.sites] if each_site else beta))",
            "local.mul_(beta[arrows.sites] if each_site else beta)",
        ),
    ),
    *group(
        "energies/boltzmann_machines.py",
        "test_boltzmann_machines.py test_discrete_energies.py -k 'rbm or RBM'",
        (
            "RBM: a unit sees itself in its conditional",
            "self._hidden_log_odds(v).unsqueeze(-2) - v.unsqueeze(-1) * self.weights",
            "self._hidden_log_odds(v).unsqueeze(-2)",
        ),
        (
            "Gaussian RBM: the scale once",
            "(v / self.scale.square()) @ self.weights",
            "(v / self.scale) @ self.weights",
        ),
        (
            "Gaussian RBM: the width of its visible units is lost",
            "return width.sum() + log_sum_of_booleans",
            "return log_sum_of_booleans",
        ),
        (
            "RBM sweep: visible units given the hidden means",
            "h = draw_booleans(self._hidden_log_odds(x), for_hidden)",
            "h = self._hidden_log_odds(x).sigmoid() + 0 * for_hidden",
        ),
    ),
    *group(
        "energies/deep_boltzmann.py",
        "test_boltzmann_machines.py test_discrete_energies.py -k 'dbm or deep or mean_field or joint'",
        (
            "mean field: the sign of the entropy",
            "return entropy.sum(-1) - self(x)",
            "return -entropy.sum(-1) - self(x)",
        ),
        (
            "deep sweeps: every other layer stays",
            "for colour in (0, 1):",
            "for colour in (0,):",
        ),
    ),
    *group(
        "energies/dense_boltzmann.py",
        "test_boltzmann_machines.py test_discrete_energies.py -k 'machine'",
        (
            "Boltzmann machine: every pair twice",
            "return -((0.5 * x @ self._ties()",
            "return -((x @ self._ties()",
        ),
    ),
    *group(
        "energies/discrete.py",
        "test_discrete_energies.py -k 'sweep'",
        (
            "sweeps: the temperature is lost",
            "(beta * self.conditionals(x)).softmax(-1)",
            "self.conditionals(x).softmax(-1)",
        ),
        (
            "booleans the other way",
            "log_odds.sigmoid().add_(uniform).ge(1)",
            "log_odds.sigmoid().add_(uniform).lt(1)",
        ),
    ),
    *group(
        "energies/chain.py",
        "test_chain.py",
        (
            "chain: draws by the table the other way",
            "table = transitions[..., t, :, :].mT",
            "table = transitions[..., t, :, :]",
        ),
        (
            "chain: messages along the wrong axis",
            "transitions[..., t - 1, :, :]).logsumexp(-2)",
            "transitions[..., t - 1, :, :]).logsumexp(-1)",
        ),
        (
            "chain: scores of the label come twice",
            "ahead, behind = self._forward_messages(), self._backward_messages()",
            "ahead, behind = self._forward_messages(), self._forward_messages()[::-1]",
        ),
    ),
    *group(
        "energies/kaufman.py",
        "test_lattice.py -k kaufman",
        (
            "Kaufman: a sine for its square",
            "2 * s * half.sin().square()",
            "2 * s * half.sin()",
        ),
    ),
    *group(
        "energies/particles.py",
        "test_composed_energies.py",
        (
            "particles: the image below, not the nearest",
            ".round().detach()",
            ".floor().detach()",
        ),
    ),
    *group(
        "distributions.py",
        "test_distributions.py test_enumeration.py test_guards.py",
        (
            "temperatures are no batch",
            'batch_shape = _joint(getattr(temperature, "shape", batch_shape), batch_shape)',
            "batch_shape = _joint(batch_shape, batch_shape)",
            "test_distributions.py -k temperature",
        ),
        (
            "sweeps: temperatures against the values of a site",
            "beta = beta.reshape(*beta.shape, *(1,) * len(self.energy.site_shape), 1)",
            "beta = beta.reshape(beta.shape)",
            "test_distributions.py -k temperature",
        ),
        (
            "the temperature is lost",
            "log_density = -energy / self.temperature",
            "log_density = -energy",
        ),
        (
            "log Z at temperature one for any",
            "support is energy.support and _is_one(temperature)",
            "support is energy.support",
        ),
        (
            "another energy keeps the log Z of the first",
            "energy, False, None",
            "energy, False, self._log_z",
        ),
        (
            "a factor with the sign of an energy",
            "pyro.factor(name, -value)",
            "pyro.factor(name, value)",
        ),
        (
            "a summed log Z at temperature one",
            "(-energies.double() / self.temperature).logsumexp(0)",
            "(-energies.double()).logsumexp(0)",
            "test_enumeration.py test_discrete_energies.py -k temperature",
        ),
        (
            "a summed log Z without a gradient",
            "(-energies.double() / self.temperature).logsumexp(0)",
            "(-energies.detach().double() / self.temperature).logsumexp(0)",
        ),
        (
            "proposals of unequal width weigh alike",
            "(-squares / (2 * scales**2) - dim * scales.log()).logsumexp(-1)",
            "(-squares / (2 * scales**2)).logsumexp(-1)",
        ),
        (
            "approximate draws: the Jacobian is lost",
            "bijection.log_abs_det_jacobian(z, x), own.dim()",
            "0 * bijection.log_abs_det_jacobian(z, x), own.dim()",
        ),
    ),
    *group(
        "potential.py",
        "test_potential.py",
        (
            "the Jacobian is lost",
            "return log_density + jacobian.reshape(*log_density.shape, -1).sum(-1)",
            "return log_density",
        ),
        (
            "the Jacobian with the wrong sign",
            "return log_density + jacobian.reshape(*log_density.shape, -1).sum(-1)",
            "return log_density - jacobian.reshape(*log_density.shape, -1).sum(-1)",
        ),
        (
            "a latent for each value of a site that is summed out",
            'init_strategy=lambda site: uniform_in_support(known[site["name"]]),',
            "init_strategy=uniform_in_support,",
            "test_potential.py -k summed_out",
        ),
        (
            "dimensions of plates from the wrong side",
            "dims = tuple(plate_at.get(d - batch_dim) for d in range(batch_dim))",
            "dims = tuple(plate_at.get(-d - 1) for d in range(batch_dim))",
        ),
    ),
]
