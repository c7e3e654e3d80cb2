"""Label sequences with a chain CRF, on data whose true labels and true posterior are known.

A hidden Markov chain of four states gives a noisy reading of the plane at each step; sequences end
at different lengths. The law of the labels given the readings is a chain CRF whose scores are
linear in the readings, so the CRF that is learned, by stock SVI since log Z is exact, can be held
against the best there is, in nats and in labels. A classifier of single steps shows what the
transitions are worth.

    python examples/sequence_labelling.py --out report/
"""

import argparse
import math
from pathlib import Path

import pyro
import torch
from matplotlib.figure import Figure
from pyro.infer import SVI, Trace_ELBO
from torch import nn
from torch.nn import Parameter

import pyro_ebm as ebm
from pyro_ebm.energies import ChainCRF
from pyro_ebm.metrics import Estimate

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--out", default="report/", help="where to save the picture")
parser.add_argument("--smoke", action="store_true", help="a run of a few seconds")
args = parser.parse_args()

torch.set_num_threads(1)  # tensors this small gain nothing from a second thread
pyro.set_rng_seed(0)
NUM_STEPS, NUM_LABELS, NOISE = 30, 4, 1.2
NUM_TRAIN, NUM_TEST, NUM_UPDATES = (500, 200, 60) if args.smoke else (4000, 2000, 600)

CENTRES = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]])
MOVES = torch.tensor(  # states go round, and stay for a while
    [
        [0.75, 0.20, 0.00, 0.05],
        [0.05, 0.60, 0.35, 0.00],
        [0.00, 0.05, 0.80, 0.15],
        [0.30, 0.00, 0.05, 0.65],
    ]
).clamp(min=0.01)
MOVES = MOVES / MOVES.sum(-1, keepdim=True)
START = torch.tensor([0.7, 0.1, 0.1, 0.1])


def sequences(num):
    """Draws labels, readings and lengths; labels beyond the end are 0, as the CRF has them."""
    y = [torch.multinomial(START, num, replacement=True)]
    for _ in range(NUM_STEPS - 1):
        y.append(torch.multinomial(MOVES[y[-1]], 1).squeeze(-1))
    y = torch.stack(y, -1)
    x = CENTRES[y] + NOISE * torch.randn(num, NUM_STEPS, 2)
    lengths = torch.randint(5, NUM_STEPS + 1, (num,))
    inside = torch.arange(NUM_STEPS) < lengths.unsqueeze(-1)
    return x, torch.where(inside, y, 0).float(), lengths


class Tagger(nn.Module):
    """Scores of labels, linear in the reading, of the first label, and of what follows what."""

    def __init__(self, chained=True):
        super().__init__()
        self.unary = nn.Linear(2, NUM_LABELS)
        self.start = Parameter(torch.zeros(NUM_LABELS))
        transitions = torch.zeros(NUM_LABELS, NUM_LABELS)
        if chained:
            self.transitions = Parameter(transitions)
        else:
            self.register_buffer("transitions", transitions)

    def forward(self, x, lengths):
        unary = self.unary(x)
        first = unary[:, :1] + self.start
        return ChainCRF(torch.cat([first, unary[:, 1:]], 1), self.transitions, lengths)


def truth(x, lengths):
    """The law of the labels given the readings, by Bayes' rule."""
    unary = -(x.unsqueeze(-2) - CENTRES).square().sum(-1) / (2 * NOISE**2)
    unary = torch.cat([unary[:, :1] + START.log(), unary[:, 1:]], 1)
    return ChainCRF(unary, MOVES.log(), lengths)


train, test = sequences(NUM_TRAIN), sequences(NUM_TEST)


def fit(tagger):
    def model(x, y, lengths):
        pyro.module("tagger", tagger)
        with pyro.plate("sequences", len(x)):
            pyro.sample("y", ebm.Boltzmann(tagger(x, lengths)), obs=y)

    pyro.clear_param_store()
    optimizer = pyro.optim.Adam({"lr": 0.03})
    svi = SVI(pyro.poutine.scale(model, 1 / 200), ebm.no_guide, optimizer, Trace_ELBO())
    for step in range(NUM_UPDATES):
        rows = torch.randint(NUM_TRAIN, (200,))
        with pyro.validation_enabled(step == 0):
            svi.step(*(part[rows] for part in train))
    return tagger


chained = fit(Tagger())
taggers = {"single steps": fit(Tagger(chained=False)), "chain CRF": chained, "the truth": truth}

x, y, lengths = test
inside = torch.arange(NUM_STEPS) < lengths.unsqueeze(-1)


def averaged(values):
    return Estimate(values.mean().item(), values.std().item() / math.sqrt(len(values)))


print(f"{'held-out sequences':20}{'log p(y|x) (nats)':20}{'labels, Viterbi':18}", end="")
print(f"{'labels, marginals':20}{'whole sequences, Viterbi'}")
scores, hits = {}, {}
for name, tagger in taggers.items():
    with torch.no_grad():
        crf = tagger(x, lengths)
        scores[name] = ebm.Boltzmann(crf).log_prob(y).double()
        best = ebm.map_estimate(ebm.Boltzmann(crf))
        assert best.method == "viterbi"
        guesses = best.x, crf.marginals().argmax(-1)
    right = [torch.where(inside, guess == y, True) for guess in guesses]
    wrong = [(~r).sum(-1) / lengths for r in right]
    hits[name] = 1 - wrong[1].double()
    cells = [averaged(scores[name]), *(averaged(1 - w.double()) for w in wrong)]
    whole = averaged(right[0].all(-1).double())
    print(f"{name:20}{cells[0]!s:20}{cells[1]!s:18}{cells[2]!s:20}{whole}")

lost = averaged(scores["the truth"] - scores["chain CRF"])
gain = averaged(hits["chain CRF"] - hits["single steps"])
print(f"\nKL(truth || chain CRF), a sequence: {lost} nats")
print(f"labels that transitions set right: {gain}")


def centred(table):
    """What of transitions the labels can tell: the scores of single steps make up for the rest."""
    return table - table.mean(0) - table.mean(1, keepdim=True) + table.mean()


known, found = centred(MOVES.log()), centred(chained.transitions.detach())
print(f"transitions, learned and true, differ by at most {(known - found).abs().max():.2f} nats")

figure = Figure(figsize=(9, 5.5), layout="constrained")
panels = figure.subplot_mosaic([["true", "learned"], ["labels", "labels"]])
for panel, table in (("true", known), ("learned", found)):
    image = panels[panel].imshow(table, cmap="RdBu", vmin=-4, vmax=4)
    panels[panel].set(title=f"transitions, {panel} (nats)", xlabel="next label", ylabel="label")
figure.colorbar(image, ax=[panels["true"], panels["learned"]])
longest = lengths.argmax()
with torch.no_grad():
    marginals = chained(x, lengths).marginals()[longest]
panels["labels"].imshow(marginals.T, cmap="Greys", vmin=0, vmax=1, aspect="auto")
panels["labels"].plot(y[longest], "o", mfc="none", mec="#d55e00", label="true label")
panels["labels"].set(title="marginals of a sequence (grey)", xlabel="step", ylabel="label")
panels["labels"].legend(loc="upper right")
Path(args.out).mkdir(parents=True, exist_ok=True)
figure.savefig(Path(args.out) / "sequence_labelling.png")

assert gain.value > 5 * gain.std_error
assert lost.value < 1.0 if args.smoke else lost.value < 0.1
