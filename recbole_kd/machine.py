"""What a number was measured on."""

from __future__ import annotations

import platform
import re
from pathlib import Path


def processor() -> str:
    """The processor's model, as far as the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()
