"""`dpt-jax check`: checks of a machine's results, repeatability, loading, storage and speed."""
