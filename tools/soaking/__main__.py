"""``python -m tools.soaking`` from the repository's root; `tools/soak` makes it ready first."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
