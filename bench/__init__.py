"""Benchmarks of the sweep against other ways to the same numbers. An environment of its own: see requirements.txt."""
