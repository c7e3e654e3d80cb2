"""Who is measured: a line for each."""

import json
from pathlib import Path
from typing import NamedTuple

CHAINS = Path(__file__).parent / "peers" / "chains.json"
"""What ``python -m benchmarks chains`` has found."""
COUNTS = [64, 256, 1024, 4096]


class Sampler(NamedTuple):
    label: str
    environment: str
    module: str
    words: dict
    """What its cell is told besides."""
    chains: int | None
    """How many; ``None`` for its own best on each target."""
    group: str = ""
    """A peer, however it is run: after the first seed only its best is repeated."""

    @property
    def is_ours(self):
        return self.module.startswith("benchmarks.ours")

    def counts(self, target):
        """The numbers of chains to run: one, the best hot and the best cold, or if unknown all."""
        if self.chains:
            return [self.chains]
        kept = json.loads(CHAINS.read_text()) if CHAINS.exists() else {}
        best = kept.get(self.label, {}).get(target)
        return sorted({best["hot"], best["cold"]}) if best else COUNTS


def ours(kernel, chains, compile="auto", metric_rank=0):
    label = f"{kernel}, stretched" if metric_rank else kernel
    label = f"{label}, compiled" if compile is True else label
    words = {"kernel": kernel, "compile": compile, "metric_rank": metric_rank}
    return Sampler(label, "own", "benchmarks.ours.sampling", words, chains)


def peer(label, module, environment="jax", chains=None, group="", **words):
    module = f"benchmarks.peers.{module}"
    return Sampler(label, environment, module, words, chains, group or label)


def pyro(label, jit):
    return peer(label, "pyro_nuts", "own", chains=1, group="Pyro NUTS", jit=jit)


def blackjax_chees(label, metric):
    return peer(label, "blackjax_chees", group="BlackJAX ChEES", metric=metric)


SAMPLERS = [
    pyro("Pyro NUTS", jit=False),
    pyro("Pyro NUTS, jit", jit=True),
    peer("NumPyro NUTS", "numpyro_nuts"),
    peer("BlackJAX NUTS", "blackjax_nuts"),
    peer("BlackJAX MAMS", "blackjax_mams"),
    blackjax_chees("BlackJAX ChEES", metric="None"),
    blackjax_chees("BlackJAX ChEES, diagonal", metric="diagonal"),
    peer("nutpie NUTS", "nutpie_nuts"),
    ours("ChEES", 64),
    ours("ChEES", 1024),
    ours("ChEES", 4096),
    ours("ChEES", 1024, compile=True),
    ours("ChEES", 4096, compile=True),
    ours("ChEES", 64, metric_rank=100),
    ours("ChEES", 1024, metric_rank=100),
    ours("ChEES", 1024, compile=True, metric_rank=100),
    ours("ChEES", 4096, compile=True, metric_rank=100),
    ours("NUTS", 64, compile=True),
    ours("MAMS", 64, compile=True),
    ours("MAMS", 1024, compile=True),
    ours("MAMS", 4096, compile=True),
]
