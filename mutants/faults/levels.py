"""Faults of kernels with trajectories of their own length, and of tempered ones."""

from mutants.fault import group

FAULTS = [
    *group(
        "kernels/chees.py",
        "test_chees.py -k 'trajectory or jitter or slope or fits'",
        (
            "ChEES: half the length",
            "wanted = 2 * jitter * state.length",
            "wanted = jitter * state.length",
        ),
        (
            "ChEES: the slope by the length itself",
            "(time * gain * speed - POWER / 4 * gain.square())",
            "(gain * speed - POWER / 4 * gain.square())",
            "test_chees.py -k slope",
        ),
        (
            "ChEES: about the origin",
            "state.metric.whiten(at.z - state.centre)",
            "state.metric.whiten(at.z)",
        ),
        (
            "ChEES: the slope of rejected ends",
            "weight = torch.where(known, accept_prob.double(), 0.0)",
            "weight = known.double()",
        ),
        (
            "ChEES: a length in no units",
            "final = climb.log_average.exp() * tuning.widest",
            "final = climb.log_average.exp()",
        ),
        (
            "ChEES: jitter beyond one",
            "(shift + spread) % 1",
            "shift + spread",
        ),
    ),
    *group(
        "kernels/tree.py",
        "test_nuts.py -k 'recursion or uniforms or tree or turn or invariant'",
        (
            "NUTS: a subtree whose end does not count in half",
            "part = momentum_sum - 0.5 * p",
            "part = momentum_sum",
        ),
        (
            "NUTS: both ends have to turn",
            "back = ((first * q).sum(1) <= 0) | ((p * q).sum(1) <= 0)",
            "back = ((first * q).sum(1) <= 0) & ((p * q).sum(1) <= 0)",
        ),
        (
            "NUTS: the kinetic energy without its half",
            "(value + 0.5 * p.double().square().sum(0))",
            "(value + p.double().square().sum(0))",
        ),
        (
            "NUTS: the tree weighs as its last doubling",
            "torch.where(full, now.tree.log_weight.logaddexp(branch.log_weight), now.tree.log_weight)",
            "torch.where(full, branch.log_weight, now.tree.log_weight)",
        ),
        (
            "NUTS: a branch is not forgotten",
            "branch=_emptied(branch, full)",
            "branch=branch",
        ),
        (
            "NUTS: acceptance above one",
            "now.accept_sum + log_weight.clamp(max=0).exp()",
            "now.accept_sum + log_weight.exp()",
        ),
        (
            "NUTS: a leaf takes the place by its own weight",
            "taken = uniform < (leaf.log_weight - total).exp()",
            "taken = uniform < (leaf.log_weight - branch.log_weight).exp()",
        ),
        (
            "NUTS: the subtree that turned is kept",
            "valid = inside & ~turned",
            "valid = inside",
        ),
        (
            "NUTS: the energy of the start",
            "return torch.stack([there.z.T, there.grad.T, momentum.T]), there.potential",
            "return torch.stack([there.z.T, grad.T, momentum.T]), there.potential",
        ),
    ),
    *group(
        "kernels/nuts.py",
        "test_nuts.py -k 'block or steps or depth or full'",
        (
            "NUTS: the energy of the start is reported",
            "energy=(before + kinetic - log_weight).to(z.dtype)",
            "energy=(before + kinetic).to(z.dtype)",
            "test_kernels.py -k energy_reported",
        ),
        (
            "NUTS: the last draw of all chains is one too late",
            "last = draw - 1",
            "last = (draw - 1).clamp(max=len(seed) - 2).clamp(min=0)",
        ),
    ),
    *group(
        "kernels/swaps.py",
        "test_tempering.py -k 'exact_draws or neighbours or theory or places'",
        (
            "swaps: the sign",
            "betas.diff() * excess.diff()",
            "-betas.diff() * excess.diff()",
        ),
        (
            "swaps: always the even pairs",
            "((pair + num_swaps) % 2 == 0)",
            "(pair % 2 == 0)",
        ),
        (
            "levels: equal acceptance for equal rejection",
            "share = 1 - swap_prob + MIN_REJECTION",
            "share = swap_prob + MIN_REJECTION",
        ),
    ),
    *group(
        "kernels/tempering.py",
        "test_tempering.py -k 'exact_draws or each_level or constrained or base or theory'",
        (
            "tempering: all of the base at every level",
            "(1 - beta) * of_base + beta * value",
            "of_base + beta * value",
        ),
        (
            "tempering: the gradient of the target alone",
            "(1 - rows) * grad_of_base + rows * grad",
            "grad",
        ),
        (
            "tempering: a base that is not normalised",
            "0.5 * xi.square().sum(-1) + log_norm, xi / scale",
            "0.5 * xi.square().sum(-1), xi / scale",
        ),
        (
            "tempering: the gradient of the base in its units",
            "+ log_norm, xi / scale",
            "+ log_norm, xi",
        ),
        (
            "tempering: MALA's step as a length",
            "** (0.5 if isinstance(self.kernel, MALA) else 1.0)",
            "** 1.0",
        ),
        (
            "tempering: fresh draws of unit width",
            "state.base_loc + state.base_scale * normal",
            "state.base_loc + normal",
        ),
        (
            "tempering: gradients stay at their level",
            "potential=value[rows], grad=grad[rows])",
            "potential=value[rows], grad=grad[num_chains:])",
        ),
    ),
]
