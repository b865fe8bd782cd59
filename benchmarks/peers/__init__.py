"""The same federated rounds here, in an eager loop, in Flower's simulation and in pfl: `python -m benchmarks.peers`."""
