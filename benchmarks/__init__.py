"""The benchmarks report figures and assert nothing: machines are too noisy."""
