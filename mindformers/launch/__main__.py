# SPDX-License-Identifier: Apache-2.0
"""``python -m mindformers.launch distribute | standalone ...``."""

from mindformers.errors import run_cli
from mindformers.launch.cli import main

if __name__ == "__main__":
    run_cli(main)
