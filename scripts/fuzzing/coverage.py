"""One target under atheris: `python -m fuzzing.coverage TARGET [libFuzzer's options]`."""

import sys
from random import Random

import atheris

with atheris.instrument_imports(include=["meshgate.core", "meshgate.adapters.consul", "meshgate.adapters.state"]):
    from .targets import TARGETS

from .corpora import corpus
from .mutation import mutated


def main() -> None:
    """Never returns."""
    name, options = sys.argv[1], sys.argv[2:]
    inputs = corpus(name)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        """What knows JSON half of the time, what follows libFuzzer's lights the other half."""
        if seed % 2:
            return mutated(data, inputs, Random(seed))[:max_size]
        return bytes(atheris.Mutate(data, max_size))

    atheris.Setup([sys.argv[0], *options], TARGETS[name], custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
