"""Faults of kernels that move continuous chains, and of what tunes them."""

from mutants.fault import group

FAULTS = [
    *group(
        "kernels/langevin.py",
        "test_kernels.py -k 'ula or ULA or MALA or mala'",
        (
            "ULA: sqrt(eta) for sqrt(2 eta)",
            "state.grad + (2 * eta).sqrt() * xi",
            "state.grad + eta.sqrt() * xi",
        ),
        (
            "ULA: up the potential",
            "return state.z - eta * state.grad",
            "return state.z + eta * state.grad",
        ),
        (
            "ULA: a stale gradient",
            "torch.where(rows, grad, state.grad),",
            "state.grad,",
        ),
        (
            "MALA: sqrt(eta) for sqrt(2 eta)",
            "metric.move(xi, (2 * eta).sqrt())",
            "metric.move(xi, eta.sqrt())",
        ),
        (
            "MALA: the way back by the gradient of the start alone",
            "metric.force(state.grad + grad, (eta / 2).sqrt())",
            "metric.force(2 * state.grad, (eta / 2).sqrt())",
        ),
        (
            "MALA: the sign of the correction",
            "value.double() - kinetic",
            "value.double() + kinetic",
        ),
        (
            "MALA: no Metropolis correction for the drift",
            "state.potential.double() - value.double() - kinetic",
            "state.potential.double() - value.double()",
        ),
        (
            "MALA: a drift without the metric",
            "state.z - metric.drift(state.grad, eta)",
            "state.z - eta * state.grad",
        ),
    ),
    *group(
        "kernels/hamiltonian.py",
        "test_kernels.py -k 'HMC or hmc or leapfrog'",
        (
            "leapfrog: a whole kick at first",
            "half = momentum - metric.force(state.grad, 0.5 * epsilon)",
            "half = momentum - metric.force(state.grad, epsilon)",
        ),
        (
            "leapfrog: the last kick by the old gradient",
            "half - metric.force(grad, 0.5 * epsilon)",
            "half - metric.force(state.grad, 0.5 * epsilon)",
        ),
        (
            "HMC: the kinetic energy without its half",
            "kinetic = 0.5 * ((end - momentum)",
            "kinetic = ((end - momentum)",
        ),
        (
            "HMC: one step too many",
            "lambda now: now[0] > 0",
            "lambda now: now[0] >= 0",
        ),
        (
            "HMC: lengths jittered upwards alone",
            "self.jitter * (2 * length - 1)",
            "self.jitter * length",
        ),
        (
            "HMC: a NaN is no divergence",
            "diverging=~(log_ratio > -MAX_ENERGY_ERROR)",
            "diverging=log_ratio < -MAX_ENERGY_ERROR",
        ),
        (
            "HMC: the energy of the end, accepted or not",
            "kept = torch.where(accepted.unsqueeze(-1), end, momentum)",
            "kept = end",
            "test_kernels.py -k energy_reported",
        ),
    ),
    *group(
        "kernels/metropolis.py",
        "test_kernels.py test_more_kernels.py -k 'RandomWalk or random_walk'",
        (
            "random walk: the ratio upside down",
            "state.potential.double() - value.double()",
            "value.double() - state.potential.double()",
        ),
        (
            "random walk: a stale gradient",
            "_replace(z=y, potential=value, grad=grad)",
            "_replace(z=y, potential=value)",
        ),
    ),
    *group(
        "kernels/transition.py",
        "test_kernels.py -k '(MALA or mala or HMC or hmc) and not scaled'",
        (
            "acceptance above one",
            "log_ratio.clamp(max=0).exp()",
            "log_ratio.exp()",
        ),
        (
            "a NaN acceptance",
            "torch.where(log_ratio > -torch.inf, log_ratio.clamp(max=0).exp(), 0.0)",
            "log_ratio.clamp(max=0).exp()",
        ),
        (
            "a rejected chain gets the potential of the proposal",
            "potential=torch.where(accepted, proposal.potential, state.potential)",
            "potential=proposal.potential",
        ),
        (
            "a rejected chain gets the gradient of the proposal",
            "grad=torch.where(rows, proposal.grad, state.grad)",
            "grad=proposal.grad",
        ),
        (
            "one decision for all chains",
            "return accept_prob, uniform < accept_prob",
            "return accept_prob, uniform[:1] < accept_prob",
        ),
        (
            "lp with the sign of an energy",
            '"lp": -state.potential',
            '"lp": state.potential',
            "test_mcmc.py -k statistics",
        ),
    ),
    *group(
        "kernels/underdamped.py",
        "test_more_kernels.py",
        (
            "friction: sqrt(1 - c) for sqrt(1 - c^2)",
            "(1 - c * c).sqrt() * xi",
            "(1 - c).sqrt() * xi",
        ),
        (
            "friction over half a step",
            "(-friction * state.step_size).exp()",
            "(-friction * state.step_size / 2).exp()",
        ),
        (
            "GHMC: no flip on rejection",
            "torch.where(accepted.unsqueeze(-1), end, -p)",
            "torch.where(accepted.unsqueeze(-1), end, p)",
        ),
        (
            "GHMC: the momentum drawn afresh at every step",
            "_replace(momentum=kept, begun=torch.ones_like(state.begun))",
            "_replace(momentum=kept)",
        ),
        (
            "GHMC: the energy before the momentum was renewed",
            "kinetic = 0.5 * ((end - p) * (end + p))",
            "kinetic = 0.5 * ((end - state.momentum) * (end + state.momentum))",
        ),
        (
            "a chain that stays does not turn back",
            "torch.where(rows, momentum, -state.momentum)",
            "torch.where(rows, momentum, state.momentum)",
        ),
        (
            "BAOAB: the second drift by the old momentum",
            "y = y + metric.move(p, half)",
            "y = y + metric.move(state.momentum, half)",
        ),
    ),
    *group(
        "kernels/isokinetic.py",
        "test_microcanonical.py",
        (
            "isokinetic: a whole turn for half a one",
            "delta = 0.5 * state.step_size * norm / order",
            "delta = state.step_size * norm / order",
        ),
        (
            "isokinetic: D for D - 1",
            "order = u.shape[-1] - 1",
            "order = u.shape[-1]",
        ),
        (
            "isokinetic: the gain without its dimensions",
            "order * gain",
            "gain",
            "test_microcanonical.py -k many_dimensions",
        ),
        (
            "isokinetic: the sign within the turn",
            "(1 + zeta + c * (1 - zeta))",
            "(1 + zeta - c * (1 - zeta))",
        ),
        (
            "isokinetic: the gain of one turn lost",
            "return state, u, before + after",
            "return state, u, 2 * before",
        ),
    ),
    *group(
        "kernels/microcanonical.py",
        "test_microcanonical.py -k 'invariant or length or formula'",
        (
            "MAMS: the sign of the kinetic energy",
            "proposal.potential.double() - kinetic",
            "proposal.potential.double() + kinetic",
        ),
        (
            "MCLMC: a direction that lasts twice as long",
            "(2 * state.step_size / state.length).expm1()",
            "(state.step_size / state.length).expm1()",
        ),
        (
            "MAMS: a jittered path of steps that are not its own",
            "(length / num_steps).minimum(state.step_size), num_steps.long()",
            "state.step_size, num_steps.long()",
        ),
    ),
    *group(
        "kernels/stochastic.py",
        "test_stochastic.py -k 'bias or subset or units or equals or minibatch'",
        (
            "SGLD: sqrt(eta) for sqrt(2 eta)",
            "(2 * eta).sqrt() * s * xi",
            "eta.sqrt() * s * xi",
        ),
        (
            "SGLD: units that enter the drift once",
            "eta * s**2 * state.grad",
            "eta * s * state.grad",
        ),
        (
            "SGHMC: the noise of the gradient taken off twice",
            "math.sqrt(1 - self.noise_estimate / self.friction)",
            "1 - self.noise_estimate / self.friction",
        ),
        (
            "minibatches with repeated rows",
            "keys.uniform_(generator=generator).topk(count).indices",
            "(keys.uniform_(generator=generator) * size).long()[..., :count]",
        ),
        (
            "minibatches: all chains see one",
            "(*num_steps, len(state.z)), generator)",
            "(*num_steps, 1), generator)",
        ),
    ),
    *group(
        "kernels/adaptation.py",
        "test_adaptation.py test_chees.py",
        (
            "dual averaging: away from the target",
            "self.mu - t.sqrt() * gap",
            "self.mu + t.sqrt() * gap",
        ),
        (
            "moments about the first origin",
            "(self.squares / count - mean.square()).clamp(min=0)",
            "(self.squares / count).clamp(min=0)",
        ),
        (
            "the last step size is a trial",
            "torch.where(when.last, step.final_step_size, step.step_size)",
            "step.step_size",
            "test_adaptation.py -k average",
        ),
        (
            "the mean where chains are yet far apart",
            "return 1 / mean(_inverse(accept_prob))[0]",
            "return mean(accept_prob)[0]",
            "test_chees.py -k harmonic",
        ),
        (
            "what is not finite counts as a draw",
            "self.count + finite.sum()",
            "self.count + len(finite)",
        ),
    ),
    *group(
        "kernels/metric.py",
        "test_metric.py test_adaptation.py -k 'units or fit or maps or coordinates or warmup'",
        (
            "units: a square root for a fourth",
            "(of_z / of_grad) ** 0.25",
            "(of_z / of_grad) ** 0.5",
        ),
        (
            "whitening that stretches",
            "self._stretched(x / self.scale, inverse=True)",
            "self._stretched(x / self.scale)",
        ),
        (
            "a drift with the units once",
            "size * self.scale**2 * grad",
            "size * self.scale * grad",
        ),
        (
            "the geometric mean with another root",
            "half = vectors * values.clamp(min=0) ** 0.25",
            "half = vectors * values.clamp(min=0) ** 0.5",
        ),
        (
            "the force by the map where its transpose belongs",
            "return self._stretched(size * self.scale * grad)",
            "return size * self.scale * self._stretched(grad)",
        ),
    ),
    *group(
        "kernels/lost.py",
        "test_lost.py",
        (
            "lost chains: a bound that forgets the dimension",
            "NATS * (dim + 1)",
            "NATS",
        ),
        (
            "a chain rejoins with its old potential",
            "_replace(z=z, potential=state.potential[source], grad=grad)",
            "_replace(z=z, grad=grad)",
        ),
    ),
    *group(
        "kernels/annealed.py",
        "test_score_matching.py -k annealed",
        (
            "annealed Langevin: steps that go with sigma",
            "state.step_size * sigma**2",
            "state.step_size * sigma",
        ),
        (
            "annealed Langevin: it begins with unit noise",
            "z = sigma * start.new_empty",
            "z = start.new_empty",
        ),
    ),
]
