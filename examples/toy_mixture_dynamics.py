"""Two far modes, one unknown weight: which ways of training learn it, which do not, and why.

The energy U_theta(x) = -log(exp(-(x + 10)^2 / 2) + exp(-theta) exp(-(x - 10)^2 / 2)) has one
parameter, the weight q = 1 / (1 + exp(theta)) of its right mode; data come from q = 0.8. So small
a model can be followed exactly: expectations over the data are sums over a grid, and what a method
converges to is known in closed form. The page docs/toy_mixture.md tells the story.

    python examples/toy_mixture_dynamics.py --out report/
"""

import argparse
import math
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch.nn import Parameter
from torch.nn.functional import logsigmoid

import pyro_ebm as ebm
from pyro_ebm.energies import TwoModes
from pyro_ebm.plotting import STYLES

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", default="report/", help="where to save the figure")
parser.add_argument("--smoke", action="store_true", help="a run of a few seconds")
args = parser.parse_args()

torch.set_num_threads(1)  # tensors this small gain nothing from a second thread
torch.set_default_dtype(torch.float64)
torch.manual_seed(1)

A, B, Q = -10.0, 10.0, 0.8
TRUTH = -math.log(Q / (1 - Q))
NUM_CHAINS = 4000
STEP = 0.05  # of the chains, and of the flow of theta
table = []


def report(quantity, found, expected, error):
    """Adds a row to the table, and holds the number against the one that is known."""
    table.append((quantity, found, expected))
    assert abs(found - expected) <= error, f"{quantity}: {found}, expected {expected}"


def rule(a, b, theta):
    """Points and weights that give expectations under two modes, exact to rounding."""
    x = torch.linspace(a - 10, b + 10, 2001)
    return x, (-TwoModes(theta, a, b)(x)).softmax(0)


x, truth = rule(A, B, TRUTH)


def velocity(objective, theta):
    """The gradient of an objective at theta, in the mean over the data."""
    energy = TwoModes(Parameter(torch.tensor(theta)), A, B)
    unnormalised = ebm.Boltzmann(lambda x: energy(x), event_shape=())
    value = (truth * objective.surrogate(unnormalised, x)).sum()
    return torch.autograd.grad(value, energy.theta)[0].item()


def flow(objective, horizon):
    """Follows an objective from theta = 0 by Euler's rule; yields the path after each step."""
    path = [0.0]
    for _ in range(round(horizon / STEP)):
        path.append(path[-1] + STEP * velocity(objective, path[-1]))
        yield path


# 1. Maximum likelihood: theta' = q(theta) - q, which has a closed law.
ML_FLOW = {1: -0.265538, 2: -0.473292, 5: -0.873286, 10: -1.173736, 20: -1.345460, 40: -1.384649}
exact = ebm.objectives.MaximumLikelihood()
ml_path = [0.0]
for _ in range(80):  # the classical Runge-Kutta rule, with steps of 1/2
    theta = ml_path[-1]
    k1 = velocity(exact, theta)
    k2 = velocity(exact, theta + k1 / 4)
    k3 = velocity(exact, theta + k2 / 4)
    k4 = velocity(exact, theta + k3 / 2)
    ml_path.append(theta + (k1 + 2 * k2 + 2 * k3 + k4) / 12)
for t, expected in ML_FLOW.items():
    report(f"maximum likelihood: theta({t})", ml_path[2 * t], expected, 2e-6)


# 2. Score matching: curvature of E|s_theta - s_*|^2 at the truth, by the distance of the modes.
CURVATURE = {
    1: 0.0464102508,
    2: 0.1069355542,
    3: 0.1018611969,
    4: 0.0608887924,
    6: 7.942644534e-3,
    8: 3.267673408e-4,
    10: 4.584310735e-6,
    20: 4.811890694e-22,
}


def score(theta, x, a, b):
    right = torch.sigmoid(0.5 * (x - a).square() - 0.5 * (x - b).square() - theta)
    return -(x - a) * (1 - right) - (x - b) * right


def score_matching(distance):
    """The slope of the loss at theta = 0, and its curvature at the truth."""
    a, b = -distance / 2, distance / 2
    points, weights = rule(a, b, TRUTH)
    zero, best = torch.tensor(0.0), torch.tensor(TRUTH)
    gap = score(zero, points, a, b) - score(best, points, a, b)
    at_zero, at_best = (torch.func.jacfwd(score)(t, points, a, b) for t in (zero, best))
    slope, curvature = 2 * weights @ (gap * at_zero), 2 * weights @ at_best.square()
    return slope.item(), curvature.item()


curvature = {distance: score_matching(distance)[1] for distance in CURVATURE}
for distance, found in curvature.items():
    expected = CURVATURE[distance]
    report(f"score matching: curvature at distance {distance}", found, expected, 1e-5 * expected)
sm_slope = score_matching(20)[0]
report("score matching: slope at theta = 0, distance 20", sm_slope, 7.2351153e-22, 1e-27)


# 3. Noise contrastive estimation against modes of weight 1 / (1 + exp(mu)): where it rests.
def nce_optimum(mu, noise_normalised, model_normalised=False, learn_c=False):
    noise = TwoModes(mu, A, B)
    _, noise_weights = rule(A, B, mu)
    parameters = torch.zeros(2, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [parameters],
        max_iter=500,
        tolerance_grad=1e-13,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )

    def loss():
        optimizer.zero_grad()
        theta, c = parameters
        model = TwoModes(theta, A, B)
        log_ratio = noise(x) - model(x) - (c if learn_c else 0.0)
        log_ratio = log_ratio + (noise.log_z() if noise_normalised else 0.0)
        log_ratio = log_ratio - (model.log_z() if model_normalised else 0.0)
        value = -(truth * logsigmoid(log_ratio) + noise_weights * logsigmoid(-log_ratio)).sum()
        value.backward()
        return value

    optimizer.step(loss)
    return parameters.tolist()


LOG_Z = 0.5 * math.log(2 * math.pi) - math.log(1 - Q)  # of the truth: 2.528376
MUS = [-3.0, -1.0, 0.0, 1.0, 2.0]
NCE = {  # no log-normaliser, and an unnormalised noise density
    -3.0: -2.825444,
    -1.0: -1.090118,
    0.0: -0.470004,
    1.0: -0.090118,
    2.0: 0.096216,
}
SETTINGS = {
    "A": {"noise_normalised": False},
    "B": {"noise_normalised": True},
    "C": {"noise_normalised": True, "learn_c": True},
    "D": {"noise_normalised": False, "learn_c": True},
    "E": {"noise_normalised": True, "model_normalised": True},
}
rest = {name: [nce_optimum(mu, **how)[0] for mu in MUS] for name, how in SETTINGS.items()}
for mu, found in zip(MUS, rest["A"], strict=True):
    report(f"NCE A, nothing normalised: theta, mu = {mu:g}", found, NCE[mu], 1e-5)
for name, expected in (("B", 1.142082), ("C", TRUTH), ("D", TRUTH), ("E", TRUTH)):
    worst = max(rest[name], key=lambda theta: abs(theta - expected))
    what = {
        "B": "noise normalised",
        "C": "B and a learned c",
        "D": "A and a learned c",
        "E": "both normalised",
    }[name]
    report(f"NCE {name}, {what}: theta, any mu", worst, expected, 1e-5)
report("NCE C: c, the log Z of the truth", nce_optimum(0.0, True, learn_c=True)[1], LOG_Z, 1e-5)


# 4. Persistent chains: no walker crosses, theta runs away and turns when a mode has been starved.
start = TwoModes(0.0, A, B)
pcd = ebm.objectives.PersistentCD(ebm.kernels.ULA(step_size=STEP), NUM_CHAINS)
pcd.chains["x"] = start.sample(NUM_CHAINS).unsqueeze(-1)
shares = []
horizon = 20 if args.smoke else 800
for pcd_path in flow(pcd, horizon):  # noqa: B007
    shares.append((pcd.chains["x"] > 0).double().mean().item())
slope = pcd_path[int(20 / STEP)] / 20
report("PCD: speed of theta, by the walkers at the right", slope, shares[0] - Q, 1e-3)
report("PCD: the same, from an even start", slope, -0.30, 0.02)
if not args.smoke:
    turn = min(pcd_path)
    report("PCD: where theta turns", turn, -144.0, 8.0)
    report("PCD: time at which it turns", pcd_path.index(turn) * STEP, 540.0, 40.0)
    report("PCD: share of walkers at the right, in the end", shares[-1], 0.94, 0.02)


# 5. The same walkers with weights: mass crosses although no walker does.
jarzynski = ebm.objectives.Jarzynski(
    ebm.kernels.ULA(step_size=STEP), NUM_CHAINS, start=ebm.Boltzmann(start)
)
*_, weighted_path = flow(jarzynski, 40)
error = 1 / math.sqrt(NUM_CHAINS * Q * (1 - Q))  # of log odds, by the counts of walkers
report("Jarzynski: theta(40)", weighted_path[-1], ML_FLOW[40], 5 * error)
report(
    "Jarzynski: log Z along the way",
    jarzynski.log_z["x"],
    TwoModes(weighted_path[-2], A, B).log_z().item(),
    5 * error,
)


print(f"{'':52}{'here':>14}{'known':>14}")
for quantity, found, expected in table:
    print(f"{quantity:52}{found:>14.6g}{expected:>14.6g}")

figure = Figure(figsize=(10, 7), layout="constrained")
(flows, curve), (fixed, cycle) = figure.subplots(2, 2)
paths = {
    "maximum likelihood": (ml_path, 0.5),
    "Jarzynski": (weighted_path, STEP),
    "PCD": (pcd_path[: int(20 / STEP)], STEP),
    "score matching": ([0.0, -40 * sm_slope], 40.0),
}
for (name, (path, dt)), (colour, dash) in zip(paths.items(), STYLES, strict=False):
    times = [i * dt for i in range(len(path))]
    flows.plot(times, path, color=colour, linestyle=dash, label=name)
flows.axhline(TRUTH, color="0.6", linewidth=0.8)
flows.set(title="gradient flow from θ = 0", xlabel="time", ylabel="θ", ylim=(-3, 0.3))
flows.legend()
curve.semilogy(list(curvature), list(curvature.values()), "ko-")
curve.set(title="score matching: curvature at the truth", xlabel="distance of the modes")
labels = {
    "A": "A: nothing normalised",
    "B": "B: noise normalised",
    "C": "C, D, E: with a log-normaliser",
}
for (name, label), (colour, dash) in zip(labels.items(), STYLES, strict=False):
    fixed.plot(MUS, rest[name], color=colour, linestyle=dash, marker="o", label=label)
fixed.set(title="NCE: where θ comes to rest", xlabel="μ of the noise", ylabel="θ")
fixed.legend()
cycle.plot([i * STEP for i in range(len(pcd_path))], pcd_path, color="k")
cycle.set(title="PCD in the long run", xlabel="time", ylabel="θ")
share_axis = cycle.twinx()
share_axis.plot([i * STEP for i in range(len(shares))], shares, color="#d55e00", linestyle="--")
share_axis.set_ylabel("share of walkers at the right (dashed)")
Path(args.out).mkdir(parents=True, exist_ok=True)
figure.savefig(Path(args.out) / "toy_mixture_dynamics.png", dpi=100)
