"""Benchmarks. Each prints one JSON line last. Nothing here is asserted: machines are shared and noisy."""
