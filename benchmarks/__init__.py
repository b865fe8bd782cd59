"""The kernel benchmarks: `python -m benchmarks --device cpu --op topk --n 25600000 --rows 1 --out FILE.csv`."""
