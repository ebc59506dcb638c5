"""Benchmarks: the cost of a training step by method and T."""
