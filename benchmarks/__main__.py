"""Run the benchmarks: `python -m benchmarks --help`."""

from .run import main

if __name__ == "__main__":
    main()
