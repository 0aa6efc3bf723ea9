"""``python -m tools.recording`` from the repository's root; `tools/record` makes it ready first."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
