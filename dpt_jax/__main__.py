"""`python -m dpt_jax COMMAND …`, the same as `dpt-jax COMMAND …`."""

from dpt_jax.cli import main

if __name__ == "__main__":
    main(prog="python -m dpt_jax")
