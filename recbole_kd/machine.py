"""What a number was measured on."""

from __future__ import annotations

import functools
import hashlib
import platform
import re
from pathlib import Path

from recbole_kd.resources import properties_dir


def processor() -> str:
    """The processor's model, as far as the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


@functools.cache
def source() -> str:
    """Digest of this package's code and shipped settings: it tells states of one version apart.

    It is that of the files when it was first asked for.

    Returns:
        12 hexadecimal digits.
    """
    digest = hashlib.blake2b(digest_size=6)
    for folder, pattern in ((Path(__file__).parent, "*.py"), (properties_dir(), "*.yaml")):
        for file in sorted(folder.rglob(pattern), key=lambda f: f.relative_to(folder).parts):
            content = file.read_bytes().replace(b"\r\n", b"\n")
            digest.update(f"{file.relative_to(folder).as_posix()} {len(content)}\n".encode())
            digest.update(content)
    return digest.hexdigest()
