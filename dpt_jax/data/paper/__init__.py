"""The published datasets, each beside the function that reads its raw download."""
