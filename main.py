"""Train prompts for CLIP and evaluate them: python main.py --config=configs/dpt.py (or --help)."""

import sys

from dpt_jax import cli

if __name__ == "__main__":
    cli.main_py(sys.argv[1:])
