"""`python -m fedsynsam` is the command `fedsynsam`."""

import sys

from .cli import main

sys.exit(main())
