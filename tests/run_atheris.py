"""Run a target of tests/fuzz.py under atheris: `python -m tests.run_atheris TARGET SEED RUNS FOLDER`.

A program of its own: what is to be covered must be imported by atheris, and libFuzzer ends the process. FOLDER is where
its first inputs are put, and what breaks a promise is left.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["cnikit"]):
    from tests import fuzz


def main() -> None:
    """Fuzz, and do not return."""
    name, seed, runs, folder = sys.argv[1:]
    corpus = Path(folder, "corpus")
    corpus.mkdir()
    for number, data in enumerate(fuzz.first_inputs(name)):
        (corpus / str(number)).write_bytes(data)
    # The targets bound their time themselves, and by the same timer.
    options = [f"-seed={seed}", f"-runs={runs}", f"-artifact_prefix={folder}/", "-timeout=0", "-max_len=4096"]
    atheris.Setup([sys.argv[0], *options, "-verbosity=0", "-print_final_stats=1", str(corpus)], fuzz.TARGETS[name])
    atheris.Fuzz()


main()
