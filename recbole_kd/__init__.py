"""Knowledge distillation for RecBole models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recbole_kd import compat

__version__ = "0.1.0"

adapted = compat.apply()
"""What was changed in the libraries at import; see :mod:`recbole_kd.compat`."""

if TYPE_CHECKING:
    from recbole_kd.deploy import load_model
    from recbole_kd.quick_start import run_recbole_kd

__all__ = ["__version__", "load_model", "run_recbole_kd"]


def __getattr__(name: str) -> Any:
    """Import the two entry points on first use, so that ``import recbole_kd`` stays light."""
    if name == "load_model":
        from recbole_kd.deploy import load_model

        return load_model
    if name == "run_recbole_kd":
        from recbole_kd.quick_start import run_recbole_kd

        return run_recbole_kd
    raise AttributeError(f"module 'recbole_kd' has no attribute '{name}'")
