# SPDX-License-Identifier: Apache-2.0
"""Writes tests/golden/llama.npz: what transformers computes for the tiny Llamas of tests/parity/llama_cases.py.

Run from the repository root with torch and transformers installed: ``python tools/make_golden_llama.py``.
Full arrays for logits and losses; for gradients their norm and a projection on a fixed random direction.
"""

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.parity.llama_cases import CASES, hf_outputs
from tests.parity.test_llama_golden import GOLDEN, summary


def main() -> None:
    """Write the file."""
    arrays = {}
    for name in CASES:
        for padded in (False, True):
            for key, value in summary(hf_outputs(name, padded)).items():
                arrays[f"{name}/{'padded' if padded else 'full'}/{key}"] = value
    np.savez_compressed(GOLDEN, **arrays)
    print(f"{GOLDEN}: {len(arrays)} arrays, {GOLDEN.stat().st_size} bytes")


if __name__ == "__main__":
    main()
