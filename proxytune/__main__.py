"""`python -m proxytune` is `proxytune`."""

import sys

from proxytune.cli import main

if __name__ == "__main__":
    sys.exit(main())
