"""What training methods hold and cost beside each other: ``python -m benchmarks.frontier``, docs/frontier.md."""
