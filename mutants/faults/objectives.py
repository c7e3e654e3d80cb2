"""Faults of what energies are learned by."""

from mutants.fault import group

FAULTS = [
    *group(
        "objectives/contrastive.py",
        "test_objectives.py test_chains.py -k 'pcd or contrastive or evaluation or chains or slot'",
        (
            "PCD: the sign of the chains",
            "return of_data - of_chains.mean(), of_chains",
            "return of_data + of_chains.mean(), of_chains",
        ),
        (
            "PCD: the sum over chains",
            "return of_data - of_chains.mean(), of_chains",
            "return of_data - of_chains.sum(), of_chains",
        ),
        (
            "PCD: chains lose their identity",
            "chains.index_copy(0, some, z)",
            "torch.cat([z, chains[len(z) :]])",
        ),
        (
            "PCD: all begin anew but the few",
            "anew = (u < self.reinit_prob).unsqueeze(-1)",
            "anew = (u > self.reinit_prob).unsqueeze(-1)",
        ),
        (
            "PCD: an evaluation moves the chains",
            "if torch.is_grad_enabled():",
            "if self.num_chains:",
        ),
        (
            "PCD: chains that are not kept",
            "self.chains[name] = z if some is None",
            "self.chains[name] = chains if some is None",
        ),
        (
            "short-run: it begins at the data",
            "return self.fresh(boltzmann, z, len(z), name)",
            "return z",
            "test_likelihood_objectives.py -k short_run",
        ),
    ),
    *group(
        "objectives/chains.py",
        "test_objectives.py test_chains.py",
        (
            "chains stay where the energy is not finite",
            "z = torch.where(finite.unsqueeze(-1), end.z, end.before)",
            "z = end.z",
        ),
        (
            "one step too few",
            "ahead = self.kernel.propose(state, noise) if number == num_steps else None",
            "ahead = self.kernel.propose(state, noise) if number >= num_steps - 1 else None",
        ),
        (
            "noise without the spread of the data",
            "return mean + spread * noise.normal_(generator=generator)",
            "return mean + noise.normal_(generator=generator)",
            "test_objectives.py test_likelihood_objectives.py test_jarzynski.py -k 'short_run or noise or anew'",
        ),
        (
            "CD: the data against themselves",
            "return of_data - sum(of_chains) / len(of_chains), torch",
            "return of_data - of_data.detach(), torch",
        ),
    ),
    *group(
        "objectives/base.py",
        "test_objectives.py test_likelihood_objectives.py",
        (
            "a temperature that learns is left to the ELBO",
            "fixed = not (parameters or has_conditions_that_learn(boltzmann))",
            "fixed = not parameters",
            "test_objectives.py -k is_given",
        ),
        (
            "the energy of a model is not registered",
            "is_new = any(id(parameter) not in self.seen",
            "is_new = all(id(parameter) in self.seen",
        ),
        (
            "a normalised sum is left to the ELBO, and its objective forgotten",
            "if boltzmann.is_normalized and not boltzmann.sums_log_z:",
            "if boltzmann.is_normalized:",
            "test_enumeration.py test_likelihood_objectives.py",
        ),
    ),
    *group(
        "objectives/score_matching.py",
        "test_score_matching.py test_objectives.py -k 'score or dsm or gaussian or slices or trace or direction'",
        (
            "DSM: away from the data",
            "(sigma * score + noise).square()",
            "(sigma * score - noise).square()",
        ),
        (
            "DSM: the factor of its noise lost",
            "(sigma * score + noise).square()",
            "(score + noise).square()",
        ),
        (
            "DSM: noise of unit width",
            "(u + sigma * noise).requires_grad_()",
            "(u + noise).requires_grad_()",
        ),
        (
            "score matching: the sign of the trace",
            "return -0.5 * score.square().sum(-1) - trace, _is_flat(trace, score)",
            "return -0.5 * score.square().sum(-1) + trace, _is_flat(trace, score)",
        ),
        (
            "score matching: the square without its half",
            "return -0.5 * score.square().sum(-1) - trace, _is_flat(trace, score)",
            "return -score.square().sum(-1) - trace, _is_flat(trace, score)",
        ),
        (
            "slices are summed up",
            "(v * torch.stack(slopes)).sum(-1).mean(0)",
            "(v * torch.stack(slopes)).sum(-1).sum(0)",
        ),
        (
            "directions on the unit sphere",
            "v * (like.shape[-1] ** 0.5 / v.norm(dim=-1, keepdim=True))",
            "v / v.norm(dim=-1, keepdim=True)",
        ),
        (
            "one noise level for a whole batch",
            "sigma = sigma[torch.randint(len(sigma), batch, device=x.device)]",
            "sigma = sigma[torch.randint(len(sigma), (1,), device=x.device)].expand(batch)",
            "test_objectives.py test_score_matching.py -k level",
        ),
    ),
    *group(
        "objectives/noise_contrastive.py",
        "test_noise_contrastive.py -k 'classifier or closed_form or normaliser or theory or score'",
        (
            "NCE: the ratio is not in the odds",
            "constant = self.log_normalizer(name) + math.log(self.ratio)",
            "constant = self.log_normalizer(name)",
        ),
        (
            "NCE: noise weighs as data",
            "+ self.ratio * logsigmoid(-of_noise).mean(0)",
            "+ logsigmoid(-of_noise).mean(0)",
        ),
        (
            "NCE: the sign of the normaliser",
            "of_data = boltzmann.log_density(x) - constant - log_q_x",
            "of_data = boltzmann.log_density(x) + constant - log_q_x",
        ),
        (
            "NCE: noise is scored as data",
            "logsigmoid(-of_noise)",
            "logsigmoid(of_noise)",
        ),
        (
            "CNCE: the factor two lost",
            "return 2 * logsigmoid(gap).mean(0)",
            "return logsigmoid(gap).mean(0)",
        ),
        (
            "CNCE: the odds upside down",
            "gap = unconstrained_log_density(boltzmann, u) - noisy",
            "gap = noisy - unconstrained_log_density(boltzmann, u)",
        ),
    ),
    *group(
        "objectives/adversarial.py",
        "test_adversarial.py",
        (
            "the flow is pushed away from the data",
            "return _turned(log_q_x), y, log_q_y",
            "return log_q_x, y, log_q_y",
        ),
        (
            "the generator loses its entropy",
            "divergence = log_q - boltzmann.expand(()).log_density(y)",
            "divergence = -boltzmann.expand(()).log_density(y)",
        ),
        (
            "a gradient that is not turned round",
            "return 2 * value.detach() - value",
            "return value",
        ),
    ),
    *group(
        "objectives/jarzynski.py",
        "test_jarzynski.py",
        (
            "weights that grow the wrong way",
            "log_weights + _alpha(state, moved, h) - _alpha(moved, state, h)",
            "log_weights + _alpha(moved, state, h) - _alpha(state, moved, h)",
        ),
        (
            "steps with too little noise",
            "math.sqrt(2 * h) * xi",
            "math.sqrt(h) * xi",
        ),
        (
            "the square of the gradient twice",
            "0.25 * h * grad.square().sum(-1)",
            "0.5 * h * grad.square().sum(-1)",
        ),
        (
            "log Z starts anew as chains are resampled",
            "self._offsets[name] = self.log_z[name]",
            "self._offsets[name] = 0.0",
        ),
        (
            "weights kept as chains are resampled",
            "log_weights = torch.zeros_like(log_weights)",
            "log_weights = log_weights.clone()",
        ),
        (
            "the expectation counts as a value",
            "(expected - expected.detach())",
            "expected",
        ),
        (
            "a missing detach: weights learn",
            'expected = (weights * one.log_density(potential.constrain(state.z)["x"])).sum()',
            'expected = one.log_density(potential.constrain(state.z)["x"]).mean()',
        ),
    ),
    *group(
        "objectives/likelihood.py",
        "test_likelihood_objectives.py -k maximum_likelihood",
        (
            "log Z is a constant",
            "return law.log_density(each).double().logsumexp(0)",
            "return law.log_density(each).detach().double().logsumexp(0)",
        ),
        (
            "a known log Z is added",
            "return log_density - boltzmann.log_z",
            "return log_density + boltzmann.log_z",
            "test_likelihood_objectives.py -k log_z_that_is_known",
        ),
        (
            "one log Z for data with conditions of their own",
            "boltzmann.expand(() if _is_one_law(boltzmann, x) else log_density.shape)",
            "boltzmann.expand(log_density.shape[:0] if log_density.dim() else ())",
        ),
    ),
    *group(
        "objectives/pseudolikelihood.py",
        "test_pseudolikelihood.py",
        (
            "some sites count as all",
            "return -weight * torch.cat([itself, log_odds])",
            "return -torch.cat([itself, log_odds])",
        ),
        (
            "the value as it is does not count",
            "itself = torch.zeros_like(log_odds[:1])",
            "itself = torch.full_like(log_odds[:1], -torch.inf)",
        ),
        (
            "ratio matching without a square",
            ".sigmoid().square().sum(0)",
            ".sigmoid().sum(0)",
        ),
    ),
    *group(
        "objectives/single_site.py",
        "test_pseudolikelihood.py test_discrete_energies.py -k 'closed or pseudo or conditional or enumeration'",
        (
            "conditionals at temperature one",
            "            log_density = log_density / boltzmann.temperature\n",
            "            log_density = log_density + 0 / boltzmann.temperature\n",
            "test_discrete_energies.py -k pseudolikelihood_asks",
        ),
        (
            "changes off by one place",
            "(places + changes) % alphabet.size",
            "(places + changes - 1) % alphabet.size",
        ),
    ),
    *group(
        "objectives/energy_discrepancy.py",
        "test_pseudolikelihood.py -k discrepancy",
        (
            "noise there, but not back",
            "u + self.noise_scale * (there + back)",
            "u + self.noise_scale * back",
        ),
        (
            "discrete noise there, but not back",
            "by = changes(sites) + changes(torch.Size((self.num_noise, *sites)))",
            "by = changes(torch.Size((self.num_noise, *sites)))",
        ),
        (
            "the odds upside down",
            "log_odds = evaluate_each(fn, boltzmann, others) - fn(boltzmann, point)",
            "log_odds = fn(boltzmann, point) - evaluate_each(fn, boltzmann, others)",
        ),
    ),
    *group(
        "objectives/improved_contrastive.py",
        "test_likelihood_objectives.py -k improved",
        (
            "chains are pushed away from the model",
            "contrast - self.kl_weight * divergence",
            "contrast + self.kl_weight * divergence",
        ),
        (
            "a last step with too little noise",
            "eta * score + (2 * eta) ** 0.5 * noise",
            "eta * score + eta**0.5 * noise",
        ),
        (
            "a missing detach: the energy pays for its chains twice",
            "energy = value + (grad * (z - z.detach())).sum(-1)",
            "energy = -boltzmann.log_density(z.reshape(x.shape)).reshape(-1)",
        ),
    ),
    *group(
        "objectives/averaging.py",
        "test_training.py -k 'average or averaged'",
        (
            "an average that remembers where it began",
            "weight = (1 - decay) / -torch.expm1((num_before + 1) * math.log(decay))",
            "weight = 1 - decay",
        ),
    ),
    *group(
        "kernels/transition.py",
        "test_antithetic.py",
        (
            "antithetic chains: twice the same noise",
            "zip(first, kernel.opposite(first), strict=True)",
            "zip(first, first, strict=True)",
        ),
        (
            "antithetic chains: noise of their own",
            "zip(first, kernel.opposite(first), strict=True)",
            "zip(first, kernel.noise(half, generator, num_steps), strict=True)",
        ),
    ),
    *group(
        "kernels/langevin.py",
        "test_antithetic.py",
        (
            "antithetic chains: the uniform number turned round",
            "return -noise[0], noise[1]",
            "return -noise[0], -noise[1]",
        ),
    ),
    *group(
        "objectives/chains.py",
        "test_antithetic.py test_likelihood_objectives.py -k 'antithetic or quadrature'",
        (
            "antithetic chains: the sum of both",
            "of_data - sum(of_chains) / len(of_chains), torch",
            "of_data - sum(of_chains), torch",
        ),
    ),
    *group(
        "objectives/score_matching.py",
        "test_antithetic.py",
        (
            "antithetic noise: twice the same",
            "torch.stack([noise, -noise])",
            "torch.stack([noise, noise])",
        ),
    ),
]
