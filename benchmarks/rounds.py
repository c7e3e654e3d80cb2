"""Libraries against each other: in each round every one has its turn, in a process of its own."""

import json

from benchmarks import process


def run(libraries, words, num_rounds, limit):
    """Yields, after each round, its number and what each library printed.

    Args:
        libraries: The environment and the module of each, by name.
        words: What every module is told.
        num_rounds: How many rounds.
        limit: The seconds that one process may take; one that gives no answer is left out.
    """
    for turn in range(num_rounds):
        answers = {}
        for name, (environment, module) in libraries.items():
            try:
                answers[name] = json.loads(process.run(environment, module, words, limit))
            except process.Failed as failure:
                print(f"{name}, round {turn}: {failure}")
        yield turn, answers
        print(f"round {turn + 1} of {num_rounds}", flush=True)
