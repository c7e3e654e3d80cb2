"""Faults of kernels on sites with finitely many values, and of those beside continuous ones."""

from mutants.fault import group

FAULTS = [
    *group(
        "kernels/informed.py",
        "test_discrete_kernels.py -k 'formula or (invariant and (Gradients or MALA))'",
        (
            "Gibbs with gradients: whole changes",
            "(-0.5 * changes.double()).scatter",
            "(-changes.double()).scatter",
        ),
        (
            "Gibbs with gradients: the way back from the wrong point",
            "log_q_back = _log_choices(changes, target.places(y))",
            "log_q_back = _log_choices(changes, places)",
        ),
        (
            "Gibbs with gradients: the sign of the way there",
            "- log_q.gather(-1, choice.unsqueeze(-1)).squeeze(-1)",
            "+ log_q.gather(-1, choice.unsqueeze(-1)).squeeze(-1)",
        ),
        (
            "discrete MALA: the way back to the proposal",
            "_sum(log_q_back, here)",
            "_sum(log_q_back, there)",
        ),
        (
            "discrete MALA: a change costs 1 / alpha",
            "cost = (1 / (2 * step_size))",
            "cost = (1 / step_size)",
        ),
        (
            "discrete MALA: stale changes",
            "log_q_back = _log_values(changes, there, state.step_size)",
            "log_q_back = _log_values(state.changes, there, state.step_size)",
        ),
    ),
    *group(
        "kernels/discrete.py",
        "test_discrete_kernels.py -k 'period or metropolis or stale or (invariant and SingleFlip)'",
        (
            "single flips: something is always proposed",
            "site = (at * (num_sites + 1)).long()",
            "site = (at * num_sites).long()",
        ),
        (
            "single flips: the ratio upside down",
            "log_ratio = state.potential.double() - value.double()",
            "log_ratio = value.double() - state.potential.double()",
        ),
        (
            "a rejected chain gets the changes of the proposal",
            "changes=torch.where(rows.unsqueeze(-1), proposal.changes, state.changes)",
            "changes=proposal.changes",
        ),
    ),
    *group(
        "kernels/gibbs.py",
        "test_discrete_kernels.py test_alternating.py -k 'Gibbs or gibbs or joint or pyros'",
        (
            "Gibbs: towards high energy",
            "below = (-values).softmax(0)",
            "below = values.softmax(0)",
        ),
        (
            "Gibbs: the draw off by one place",
            "drawn = (uniform >= below).sum(0)",
            "drawn = (uniform < below).sum(0)",
        ),
        (
            "Gibbs: one sweep, however many are asked for",
            "for row in uniform.unbind(1):",
            "for row in uniform.unbind(1)[:1]:",
        ),
    ),
    *group(
        "kernels/alternating.py",
        "test_alternating.py",
        (
            "alternating: given where the others were",
            "parts = self._parts(potential, z)\n        for kernel, own, width",
            "parts = self._parts(potential, state.z)\n        for kernel, own, width",
        ),
        (
            "alternating: a stale potential",
            'looked = ("z", "potential", ',
            'looked = ("z", ',
        ),
        (
            "alternating: divergences of the last kernel alone",
            "infos[-1]._replace(diverging=diverging)",
            "infos[-1]",
            "test_alternating.py -k divergences",
        ),
    ),
    *group(
        "kernels/cluster.py",
        "test_discrete_kernels.py -k '(Swendsen or swendsen) and not refuses'",
        (
            "clusters: bonds of half the strength",
            "2 * strength.abs()",
            "strength.abs()",
        ),
        (
            "clusters: a field of half the strength",
            "torch.sigmoid(-2 * total)",
            "torch.sigmoid(-total)",
        ),
        (
            "clusters: bonds that forget the temperature",
            "strength = beta * energy.couplings",
            "strength = 1.0 * energy.couplings",
            "test_discrete_kernels.py test_logz_discrete.py -k 'Swendsen or swendsen'",
        ),
        (
            "clusters: chains are tied together",
            "point * num_sites",
            "point * 0",
        ),
        (
            "clusters: runs end where they begin",
            "index_add_(1, second[follows], ahead) == 0",
            "index_add_(1, first[follows], ahead) == 0",
        ),
        (
            "clusters: bonds across the rows are lost",
            "at - point * len(others)",
            "at * 0",
        ),
    ),
    *group(
        "kernels/discrete_tempering.py",
        "test_discrete_kernels.py -k 'tempering or Tempering or Tempered'",
        (
            "discrete tempering: changes at the wrong temperature",
            "changes=now.changes / of_rows",
            "changes=now.changes",
        ),
        (
            "discrete tempering: potentials at the wrong temperature",
            "potential=now.potential / beta",
            "potential=now.potential",
        ),
        (
            "discrete tempering: the base without one of its values",
            "(of_base * target.num_values).long()",
            "(of_base * (target.num_values - 1)).long()",
        ),
    ),
    *group(
        "discrete.py",
        "test_discrete_kernels.py -k 'changes or (invariant and (Gradients or MALA)) or batch'",
        (
            "the tangent from zero",
            "grad.unsqueeze(-1) * (values - z.unsqueeze(-1))",
            "grad.unsqueeze(-1) * values",
        ),
        (
            "changes: the temperature is lost",
            "logits = (logits / temperature).reshape",
            "logits = logits.reshape",
        ),
        (
            "Gibbs: the temperature of the law is lost",
            "return self.beta / self.temperature",
            "return self.beta",
            "test_discrete_kernels.py test_discrete_energies.py -k 'Gibbs or temperature'",
        ),
        (
            "changes with the sign of a gain",
            "changes = logits.gather(-1, self.places(z).unsqueeze(-1)) - logits",
            "changes = logits - logits.gather(-1, self.places(z).unsqueeze(-1))",
        ),
    ),
    *group(
        "kernels/resampling.py",
        "test_resampling.py",
        (
            "resampling without a uniform",
            "places = (torch.arange(n, device=weights.device) + u) / n",
            "places = (torch.arange(n, device=weights.device) + 0 * u) / n",
        ),
    ),
]
