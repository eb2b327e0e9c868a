"""What ``recbole-kd doctor`` prints: versions, what was adapted, what is missing."""

from __future__ import annotations

import importlib.metadata
import platform
import sys

from recbole_kd import compat

OPTIONAL = {
    "pyarrow": "files in parquet",
    "statsmodels": "tests of significance",
    "matplotlib": "figures of a report",
    "jinja2": "a report as HTML",
    "rich": "the live table of a benchmark",
    "optuna": "recbole-kd tune",
}
"""Libraries that few runs need, and what for."""

CPU_TORCH = "pip install torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu"


def report() -> tuple[str, list[str]]:
    """Look at this installation.

    Returns:
        The text to print, and the problems in it (empty if all is well).
    """
    import recbole_kd

    lines = [f"recbole-kd {recbole_kd.__version__}, Python {platform.python_version()}", ""]
    lines.append("Libraries")
    for name, (low, high) in compat.REQUIREMENTS.items():
        lines.append(f"  {name:<9} {_version(name):<14} admitted: >={low},<{high}")
    for name, what in OPTIONAL.items():
        lines.append(f"  {name:<9} {_version(name):<14} optional, for {what}: pip install {name}")
    problems = compat.version_problems()
    if not (3, 10) <= sys.version_info[:2] <= (3, 11):
        problems.append(
            f"Python {platform.python_version()}: RecBole's ray has wheels for 3.10 and 3.11 only"
        )
    lines += ["", "Device", f"  {_device()}", "", "Adapted (recbole_kd/compat.py)"]
    done = recbole_kd.adapted
    for shim in compat.SHIMS:
        state = done.get(shim.name)
        note = "" if state is None else f" [{_state(state)}]"
        lines.append(f"  {shim.name}{note}: {shim.symptom}")
        lines.append(f"      {shim.versions}; {shim.how}; until {shim.delete_when}")
    if done["recbole was imported first"]:
        lines.append("  note: recbole was imported before recbole_kd; import recbole_kd first")
    lines += ["", "Problems" if problems else "No problems found"]
    lines += [f"  {p}" for p in problems]
    return "\n".join(lines), problems


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _state(state: object) -> str:
    if isinstance(state, list):
        return "added " + ", ".join(state) if state else "not needed here"
    return "added" if state else "not needed here"


def _device() -> str:
    try:
        import torch
    except ImportError:
        return f"torch is missing; without a GPU: {CPU_TORCH}"
    if torch.cuda.is_available():
        return f"CUDA {torch.version.cuda}, {torch.cuda.get_device_name(0)}"
    if torch.version.cuda:
        return f"CPU with a CUDA build of torch; the smaller CPU build: {CPU_TORCH}"
    return f"CPU, {torch.get_num_threads()} threads"
