"""``python -m dualpipe_rs``: the command line, which is ``dualpipe_rs.cli``."""

from __future__ import annotations

import sys

from dualpipe_rs.cli import main

if __name__ == "__main__":
    sys.exit(main())
