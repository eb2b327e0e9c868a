"""``python -m recbole_kd``."""

import sys

from recbole_kd.cli import main

sys.exit(main())
