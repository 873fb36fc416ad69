"""Experiments: run folders and sweeps, tests and results, what the command lines share."""
