"""CPU benchmarks against PyTorch: `python -m benchmarks`."""
