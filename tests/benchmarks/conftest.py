"""Makes the checkout's `benchmarks` importable; behind everything else, so that an installed package stays in front."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent.parent))
