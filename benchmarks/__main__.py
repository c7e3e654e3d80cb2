"""``python -m benchmarks`` measures all and draws it; a name after it does that part alone."""

import argparse

from benchmarks import chains, figure, langevin, make_references, sampling, scale

PARTS = {"sampling": sampling, "langevin": langevin, "scale": scale, "figure": figure}
ONCE = {"chains": chains, "references": make_references}
"""Not part of a run: what they find is kept in files."""


def main():
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="part")
    for name, part in (PARTS | ONCE).items():
        command = commands.add_parser(name, help=part.__doc__.splitlines()[0])
        part.add_arguments(command)
    args = parser.parse_args()
    if args.part:
        (PARTS | ONCE)[args.part].main(args)
        return
    for name, part in PARTS.items():
        part.main(parser.parse_args([name]))


if __name__ == "__main__":
    main()
