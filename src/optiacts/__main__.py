"""``python -m optiacts`` is the `optiacts` command."""

import sys

from optiacts.cli import main

sys.exit(main())
