"""One run, from a configuration to results, and sweeps of many."""
