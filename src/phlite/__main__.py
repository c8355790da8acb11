"""`python -m phlite` is the command `phlite`."""

import sys

from phlite.cli import main

if __name__ == "__main__":
    sys.exit(main())
