"""Search for hyper-parameters, by the validation metric alone."""

from recbole_kd.tuning.search import tune

__all__ = ["tune"]
