"""`python -m neft`."""

from __future__ import annotations

import sys

from neft.cli import main

sys.exit(main())
