"""Training: an experiment, its steps, and the loop around them."""
