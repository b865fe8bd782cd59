"""The programs that `python -m benchmarks.cases.round` times: the same rounds here, in a loop, in Flower and in pfl."""
