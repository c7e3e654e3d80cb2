"""Faults of what is said of draws: diagnostics, moments, export, metrics, the driver."""

from mutants.fault import group

FAULTS = [
    *group(
        "diagnostics.py",
        "test_diagnostics.py",
        (
            "R-hat: n for n - 1",
            "((n - 1) / n + between / within).sqrt()",
            "(1 + between / within).sqrt()",
        ),
        (
            "R-hat: folded about zero",
            "folded = (halves - _median(halves)).abs()",
            "folded = halves.abs()",
        ),
        (
            "R-hat: without the folded draws",
            "return torch.maximum(_r_hat(_normal_ranks(halves)), _r_hat(_normal_ranks(folded)))",
            "return _r_hat(_normal_ranks(halves))",
        ),
        (
            "ranks: another offset",
            "(_ranks(ordered) - 0.375)",
            "(_ranks(ordered) - 0.5)",
        ),
        (
            "ranks: ties by their order",
            "return (first + last).double() / 2 + 1",
            "return place.double() + 1",
        ),
        (
            "ESS: a biased variance",
            "within = covariance[0] * n / (n - 1)",
            "within = covariance[0]",
        ),
        (
            "ESS: lag zero counts twice",
            "tau = 2 * total - 1 +",
            "tau = 2 * total +",
        ),
        (
            "ESS: pairs that may rise",
            "pairs.cummin(0).values",
            "pairs",
        ),
        (
            "ESS: chains are not told apart",
            "(x.mean(1).var(0) if num_chains > 1 else 0.0)",
            "0.0",
        ),
        (
            "ESS: chains are not split",
            "ranks = _normal_ranks(_split(draws.double()))",
            "ranks = _normal_ranks(draws.double())",
        ),
        (
            "nested R-hat: within chains alone",
            "(between_chains + within_chains).mean(0)",
            "within_chains.mean(0)",
        ),
    ),
    *group(
        "runs/draws.py",
        "test_draws.py",
        (
            "thinning keeps the first of each",
            "slice(self.thin - 1 - skipped, None, self.thin)",
            "slice(-skipped % self.thin, None, self.thin)",
        ),
        (
            "moments: blocks weigh alike",
            "value=weight * self.num_steps",
            "value=weight",
        ),
        (
            "variance by n",
            "self.squares[name] / (n - 1)",
            "self.squares[name] / n",
        ),
        (
            "flags of steps that were cut are lost",
            "so_far = flags.cumsum(0) + pending",
            "so_far = flags.cumsum(0)",
        ),
        (
            "streamed R-hat: n for n - 1",
            "(1 - 1 / max(1, self.num_steps) + between / variance.mean(0)).sqrt()",
            "(1 + between / variance.mean(0)).sqrt()",
        ),
        (
            "totals of the last block",
            "block.sum(0, dtype=dtype) + self.totals.get(name, 0)",
            "block.sum(0, dtype=dtype)",
        ),
        (
            "the old is gone before the new is there",
            'fresh.replace(fresh.with_suffix(""))',
            'fresh.with_suffix("").unlink(missing_ok=True) or fresh.rename(fresh.with_suffix(""))',
        ),
    ),
    *group(
        "export.py",
        "test_export.py",
        (
            "export: a likelihood at a draw of what was summed out",
            "if _is_normalized(site) and name not in self.beneath",
            "if _is_normalized(site)",
            "test_export.py -k summed_out",
        ),
        (
            "export: chains and draws mixed up",
            "values.unflatten(0, shape) for name, values in found.items()",
            "values.unflatten(0, shape[::-1]).transpose(0, 1) for name, values in found.items()",
        ),
        (
            "export: plates from the wrong side",
            "plates.get(d - batch_dim, f",
            "plates.get(-d - 1, f",
        ),
        (
            "export: an energy counts as a likelihood",
            "return not isinstance(base, Boltzmann) or base.is_normalized",
            "return isinstance(base, Boltzmann) or base is not None",
        ),
        (
            "export: no normalised energy has a likelihood",
            "return not isinstance(base, Boltzmann) or base.is_normalized",
            "return not isinstance(base, Boltzmann)",
        ),
        (
            "export: a minibatch counts as the data",
            'and not shown_in_part.intersection(f.name for f in site["cond_indep_stack"])',
            'and not shown_in_part.intersection(f.dim for f in site["cond_indep_stack"])',
        ),
        (
            "export: warmup as draws",
            'groups["warmup_posterior"] = mcmc.get_warmup()',
            'groups["warmup_posterior"] = mcmc.get_samples(group_by_chain=True)',
        ),
        (
            "export: thinning is not told",
            'attrs["thinning"] = mcmc.thin',
            'attrs["thinning"] = 1',
        ),
    ),
    *group(
        "mcmc.py",
        "test_mcmc.py",
        (
            "superchains start at different points",
            ").repeat_interleave(\n            self.num_chains // groups, dim=0",
            ").repeat(\n            self.num_chains // groups, 1",
            "test_mcmc.py -k superchain",
        ),
        (
            "adaptation goes on as draws are kept",
            'self._draw(self.draws, "sample", progress, waiting, None)',
            'self._draw(self.draws, "sample", progress, waiting, adaptation)',
            "test_mcmc.py -k statistics",
        ),
    ),
    *group(
        "runs/arrays.py",
        "test_draws.py",
        (
            "a block is written over the last",
            "self.held[key][start : start + len(rows)] = rows",
            "self.held[key][: len(rows)] = rows",
        ),
    ),
    *group(
        "runs/results.py",
        "test_mcmc.py",
        (
            "acceptance over the draws that are kept",
            '(totals["acceptance_rate"] / self.draws.num_steps)',
            '(totals["acceptance_rate"] / self.draws.count)',
            "test_mcmc.py -k acceptance_rate",
        ),
    ),
    *group(
        "metrics/two_sample.py",
        "test_metrics.py test_more_metrics.py",
        (
            "MMD: a row is near itself",
            "to_x = kxx.sum(1) - kxx.diagonal()",
            "to_x = kxx.sum(1)",
            "test_metrics.py -k discrepancy",
        ),
        (
            "distance along lines: the error of directions is lost",
            "+ each.var() / num_directions",
            "",
            "test_more_metrics.py -k 'line or directions'",
        ),
    ),
    *group(
        "metrics/detection.py",
        "test_metrics.py -k auroc",
        (
            "AUROC: ties count whole",
            "below = torch.searchsorted(s_out, s_in, right=False)",
            "below = torch.searchsorted(s_out, s_in, right=True)",
        ),
    ),
    *group(
        "metrics/neighbours.py",
        "test_more_metrics.py",
        (
            "a point is its own neighbour",
            "kthvalue(k + 1, dim=1)",
            "kthvalue(k, dim=1)",
            "test_more_metrics.py -k precision",
        ),
    ),
]
