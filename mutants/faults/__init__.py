"""The faults, by what they are planted in."""

from mutants.faults import chains, discrete, energies, levels, logz, objectives, outputs, runs

AREAS = {
    "kernels": chains.FAULTS + levels.FAULTS,
    "discrete kernels": discrete.FAULTS,
    "objectives": objectives.FAULTS,
    "log Z": logz.FAULTS,
    "energies": energies.FAULTS,
    "diagnostics, draws, export": outputs.FAULTS,
    "long runs, ranks": runs.FAULTS,
}
