"""Who is measured: a line for each."""

import json
from pathlib import Path
from typing import NamedTuple

CHAINS = Path(__file__).parent / "peers" / "chains.json"
UNSCANNED = {"hot": 256, "cold": 64}
"""Chain counts of a peer on a target for which ``python -m benchmarks chains`` was never run."""


class Sampler(NamedTuple):
    label: str
    environment: str
    module: str
    words: dict
    """What its cell is told besides."""
    chains: int | None
    """How many; ``None`` for its own best on each target."""
    rivals: tuple = ()
    """Labels of other ways to run the same: on each target only the best of them is repeated."""

    @property
    def is_ours(self):
        return self.module.startswith("benchmarks.ours")

    def counts(self, target):
        """The numbers of chains to run: one, or the best hot and the best cold."""
        if self.chains:
            return [self.chains]
        kept = json.loads(CHAINS.read_text()) if CHAINS.exists() else {}
        best = kept.get(self.label, {}).get(target, UNSCANNED)
        return sorted({best["hot"], best["cold"]})


def ours(kernel, chains, compile="auto"):
    label = f"{kernel}, compiled" if compile is True else kernel
    words = {"kernel": kernel, "compile": compile}
    return Sampler(label, "own", "benchmarks.ours.sampling", words, chains)


def peer(label, module, environment="jax", chains=None, rivals=(), **words):
    return Sampler(label, environment, f"benchmarks.peers.{module}", words, chains, rivals)


def pyro(label, rival, jit):
    return peer(label, "pyro_nuts", "own", chains=1, rivals=(rival,), jit=jit)


def blackjax_chees(label, rival, metric):
    return peer(label, "blackjax_chees", rivals=(rival,), metric=metric)


SAMPLERS = [
    pyro("Pyro NUTS", "Pyro NUTS, jit", jit=False),
    pyro("Pyro NUTS, jit", "Pyro NUTS", jit=True),
    peer("NumPyro NUTS", "numpyro_nuts"),
    peer("BlackJAX NUTS", "blackjax_nuts"),
    peer("BlackJAX MAMS", "blackjax_mams"),
    blackjax_chees("BlackJAX ChEES", "BlackJAX ChEES, diagonal", metric="None"),
    blackjax_chees("BlackJAX ChEES, diagonal", "BlackJAX ChEES", metric="diagonal"),
    peer("nutpie NUTS", "nutpie_nuts"),
    ours("ChEES", 64),
    ours("ChEES", 64, compile=True),
    ours("ChEES", 1024),
    ours("ChEES", 1024, compile=True),
    ours("ChEES", 4096, compile=True),
    ours("NUTS", 64),
    ours("NUTS", 64, compile=True),
    ours("MAMS", 64),
    ours("MAMS", 64, compile=True),
]
