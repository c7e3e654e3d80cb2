"""Faults of estimators of log Z."""

from mutants.fault import group

RIGHT = "test_logz_estimators.py -k 'right_within'"

FAULTS = [
    *group(
        "logz/base.py",
        "test_logz_estimators.py test_logz_exact.py -k 'right_within or held_out or arviz'",
        (
            "the sum of weights for their mean",
            "return log_weights.logsumexp(dim) - math.log(log_weights.shape[dim])",
            "return log_weights.logsumexp(dim)",
        ),
        (
            "errors that fall with n",
            "return weights.std(0) / math.sqrt(len(weights))",
            "return weights.std(0) / len(weights)",
        ),
        (
            "the spread of weights for the error of their mean",
            "return weights.std(0) / math.sqrt(len(weights))",
            "return weights.std(0)",
        ),
        (
            "the effective number of weights to the square",
            "ess = (2 * log_weights.logsumexp(dim) - (2 * log_weights).logsumexp(dim)).exp()",
            "ess = (log_weights.logsumexp(dim) - (2 * log_weights).logsumexp(dim)).exp()",
            "test_logz_estimators.py",
        ),
        (
            "islands: the spread of their logs does not count",
            "return torch.maximum(error, (logs.var().expm1() / len(logs)).sqrt())",
            "return error",
            "test_logz_estimators.py -k spread",
        ),
    ),
    *group(
        "logz/annealing.py",
        "test_logz_estimators.py -k 'right_within and ais or unbiased or infinite'",
        (
            "AIS: the sign of the work",
            "log_w[-1] - (beta - before) * walkers.excess",
            "log_w[-1] + (beta - before) * walkers.excess",
        ),
        (
            "AIS: the reverse direction weighs as the forward one",
            "log_w[-1] - (beta - before) * walkers.excess",
            "log_w[-1] - (beta - before).abs() * walkers.excess",
        ),
        (
            "AIS: what the base does not share is not counted",
            "groups = groups - math.log(made.covered)",
            "groups = groups * 1.0",
        ),
        (
            "AIS: the lower bound on the upper side",
            "relative_error(log_w).item(), bound - 2 * error)",
            "relative_error(log_w).item(), bound + 2 * error)",
        ),
        (
            "AIS: walkers do not move",
            "if 0 < beta < 1:",
            "if 1 < beta < 1:",
        ),
        (
            "AIS: reverse draws come from the base",
            "walkers = made.path.draw_target(num_chains)",
            "walkers = made.path.draw_base(num_chains, generator)",
            "test_logz_estimators.py -k 'right_within and banana'",
        ),
    ),
    *group(
        "logz/bridge.py",
        "test_logz_estimators.py -k '(right_within and bridge) or tight'",
        (
            "bridge: upside down",
            "value, before = value + up - down, value",
            "value, before = value - up + down, value",
        ),
        (
            "bridge: the bounds change places",
            "upper, of_upper = grouped(-log_mean_exp(-of_target, 1))",
            "upper, of_upper = grouped(log_mean_exp(of_target, 1))",
            "test_logz_estimators.py -k tight",
        ),
        (
            "bridge of many spans: the far side is taken for the near one",
            "below, above = -gaps * ladder.excess[..., :-1], -gaps * ladder.excess[..., 1:]",
            "above, below = -gaps * ladder.excess[..., :-1], -gaps * ladder.excess[..., 1:]",
            "test_logz_estimators.py -k fourth",
        ),
        (
            "bridge of many spans: sides vary together",
            "each = (f_0 - f_1).sum(-1).mean(0)",
            "each = (f_0 + f_1).sum(-1).mean(0)",
            "test_logz_estimators.py -k many_spans",
        ),
    ),
    *group(
        "logz/smc.py",
        "test_logz_estimators.py -k '(right_within and smc) or far or share'",
        (
            "SMC: what was resampled is forgotten",
            "offset = torch.where(uneven, by_now, offset)",
            "offset = torch.where(uneven, offset, offset)",
        ),
        (
            "SMC: weights kept as walkers are resampled",
            "log_w = torch.where(uneven.unsqueeze(-1), 0.0, log_w)",
            "log_w = log_w.clone()",
        ),
        (
            "SMC: islands mixed up",
            "walkers = taken(walkers, (begins + rows).flatten())",
            "walkers = taken(walkers, rows.flatten())",
        ),
        (
            "SMC: the sign of the work",
            "log_w = log_w - (beta - before)",
            "log_w = log_w + (beta - before)",
        ),
    ),
    *group(
        "logz/ladder.py",
        "test_logz_estimators.py -k '(right_within and (stepping or bridge or thermodynamic)) or carry'",
        (
            "replica exchange: the sign of swaps",
            "log_ratio = betas.diff().unsqueeze(-1) * excess.diff(dim=0)",
            "log_ratio = -betas.diff().unsqueeze(-1) * excess.diff(dim=0)",
        ),
        (
            "replica exchange: always the even pairs",
            "((pair + t) % 2 == 0)",
            "(pair % 2 == 0)",
            "test_logz_estimators.py -k carry",
        ),
        (
            "replica exchange: chains mixed up",
            "return source * num_chains + torch.arange(num_chains, device=betas.device), swap_prob",
            "return source * num_chains, swap_prob",
        ),
    ),
    *group(
        "logz/thermodynamic.py",
        "test_logz_estimators.py -k '(right_within and (stepping or thermodynamic)) or fourth'",
        (
            "thermodynamic: the sign of the correction",
            "- gap**2 / 12 * slope.diff(dim=-1)",
            "+ gap**2 / 12 * slope.diff(dim=-1)",
        ),
        (
            "thermodynamic: the rule of the left ends",
            "0.5 * gap * (g[..., :-1] + g[..., 1:])",
            "gap * g[..., :-1]",
        ),
        (
            "stepping stone: half a gap on one side",
            "log_mean_exp((above / 2).flatten(0, 1))",
            "log_mean_exp(above.flatten(0, 1))",
        ),
        (
            "stepping stone: the sign of one side",
            "(up - down).sum().item(),",
            "(up + down).sum().item(),",
        ),
    ),
    *group(
        "logz/continuous.py",
        "test_logz_estimators.py -k '(right_within and (smc or ais)) or gradients_are or constrained or keep or infinite'",
        (
            "coordinates: their volume is lost",
            "value, grad = value - self.log_volume, grad @ self.tril",
            "value, grad = value, grad @ self.tril",
        ),
        (
            "coordinates: the volume of the base law is lost",
            "base_value, base_grad = base_value - self.log_volume, base_grad @ self.tril",
            "base_value, base_grad = base_value, base_grad @ self.tril",
        ),
        (
            "coordinates: the transposed map for the gradient",
            "value - self.log_volume, grad @ self.tril\n",
            "value - self.log_volume, grad @ self.tril.mT\n",
        ),
        (
            "the base is not normalised",
            "0.5 * (z.square().sum(-1) + LOG_2PI * z.shape[-1])",
            "0.5 * z.square().sum(-1)",
        ),
        (
            "walkers move at beta = 1",
            "value = (1 - beta) * seen.base_value + beta * seen.value",
            "value = seen.value",
        ),
        (
            "rejected walkers take the energy of the proposal",
            "torch.where(at_last.unsqueeze(-1) if new.dim() > 1 else at_last, new, old)",
            "torch.where(at_last.unsqueeze(-1), new, old) if new.dim() > 1 else new",
        ),
        (
            "MALA's step as a length",
            "ratio = ratio.sqrt() if isinstance(self.kernel, MALA) else ratio",
            "ratio = ratio",
            "test_logz_estimators.py",
        ),
    ),
    *group(
        "logz/held_out.py",
        "test_logz_estimators.py -k held_out",
        (
            "held out: the sign of log Z",
            "terms = log_density - (",
            "terms = log_density + (",
        ),
        (
            "held out: the error of log Z is not counted",
            "math.hypot(spread, *moved)",
            "spread",
        ),
    ),
    *group(
        "logz/exact.py",
        "test_logz_exact.py",
        (
            "exact: the temperature of a tempered energy is lost",
            "temperature * _number(energy.temperature))",
            "_number(energy.temperature))",
        ),
        (
            "exact: a weight counts as a temperature",
            "cooled(energy.energy, temperature / weight)",
            "cooled(energy.energy, temperature * weight)",
        ),
        (
            "exact: a free energy is cooled as if it were linear",
            "(temperature != 1 and not energy.linear_in)",
            "(temperature != 1 and energy.linear_in is None)",
        ),
    ),
    *group(
        "logz/pareto.py",
        "test_logz_estimators.py -k 'arviz or heavy'",
        (
            "the tail is not smoothed",
            "ordered[-num_tail:] = (",
            "_ = (",
        ),
        (
            "the prior of the shape is lost",
            "(n * k.item() + PRIOR_WEIGHT * PRIOR_SHAPE) / (n + PRIOR_WEIGHT)",
            "k.item()",
        ),
    ),
    *group(
        "summation.py",
        "test_logz.py",
        (
            "quadrature: a box that never grows",
            "outside = max(_outside(marginal) for marginal in _marginals(grid, log_density))",
            "outside = 0.0",
        ),
        (
            "quadrature: the mass beyond one end alone",
            "((marginal, median), (marginal.flip(0), len(marginal) - 1 - median))",
            "((marginal, median),)",
        ),
        (
            "quadrature: the volume of a cell is lost",
            "return _log_density(boltzmann, grid).logsumexp(0) + grid.spacing().log().sum()",
            "return _log_density(boltzmann, grid).logsumexp(0)",
        ),
        (
            "quadrature: as many gaps as points",
            "(self.high - self.low).double() / (self.num_points - 1)",
            "(self.high - self.low).double() / self.num_points",
        ),
    ),
    *group(
        "logz/discrete.py",
        "test_logz_discrete.py -k 'excess or invariant or drawn_from or right_within'",
        (
            "discrete paths: the base at full weight",
            "log_weights + (1 - beta) * self.logits",
            "log_weights + self.logits",
        ),
        (
            "discrete paths: the base is not normalised",
            "self.sites.numel() * math.log(self.num_values)",
            "0.0",
        ),
        (
            "discrete paths: sweeps forget the temperature",
            "return energy.sweep(z, uniform, beta / temperature)",
            "return energy.sweep(z, uniform, beta)",
        ),
        (
            "discrete paths: the energy of the law at temperature one",
            "return self.placed(z, -self.boltzmann.log_density(z))",
            "return self.placed(z, self.boltzmann.energy(z))",
        ),
        (
            "discrete paths: clusters never turn",
            "self._turns(generator)):",
            "False):",
            "test_logz_discrete.py -k 'clusters_turn_a'",
        ),
    ),
    *group(
        "logz/between.py",
        "test_logz_discrete.py -k 'any_kernel or changes_between'",
        (
            "between: clusters without the field of the base",
            "field = of_base if field is None else field + of_base",
            "field = field",
        ),
        (
            "between: the field of the base on spins is twice as strong",
            "path.logits.diff(dim=-1).squeeze(-1) / 2",
            "path.logits.diff(dim=-1).squeeze(-1)",
        ),
        (
            "between: couplings as they are in the target",
            "couplings = over.unsqueeze(-1) * energy.couplings",
            "couplings = torch.ones_like(over).unsqueeze(-1) * energy.couplings",
        ),
        (
            "between: changes without those of the base",
            "changes = changes + (1 - beta) * (here - logits)",
            "changes = changes + 0.0",
        ),
        (
            "between: the base at full weight in the changes",
            "changes + (1 - beta) * (here - logits)",
            "changes + (here - logits)",
        ),
        (
            "between: the potential is that of the target",
            "self.path.base_value(self.seen.z) + self._rows",
            "self._rows",
        ),
    ),
]
