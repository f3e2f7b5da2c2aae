"""Benchmarks: each prints what it measured beside a reference, in one run."""
