"""``python -m tools.benchmark`` from the repository's root; `tools/bench` makes it ready first."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
