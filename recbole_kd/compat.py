"""The one module that adapts RecBole 1.2.1 to current libraries.

RecBole 1.2.1 is the last 1.x release. Each entry of :data:`SHIMS` names a symptom, the versions
that show it and the release that would make the shim unnecessary; :func:`apply` installs those
that patch a library, the others are overridden in a subclass of ours and are listed here so that
``recbole-kd doctor`` can print the whole story. ``tests/test_compat.py`` shows that each is still
needed and right.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from recbole_kd.errors import KDError

NUMPY_ALIASES = {
    "bool": np.bool_,
    "float": np.float64,
    "str": np.str_,
    "long": np.int64,
}
"""Names that RecBole reads from numpy and that numpy 1.24 or 2.0 removed."""

REQUIREMENTS = {
    "recbole": ("1.2.1", "1.3"),
    "torch": ("2.6", "2.14"),
    "numpy": ("1.24", "3"),
    "pandas": ("2.0", "3"),
    "scipy": ("1.10", "2"),
}
"""Library -> (first version admitted, first version refused); ``setup.py`` reads the same table."""


@dataclass(frozen=True)
class Shim:
    """One adaptation.

    Attributes:
        name: Short name, shown by ``recbole-kd doctor``.
        symptom: What a user sees without it.
        versions: Where the symptom appears.
        how: Where the remedy is.
        delete_when: The release that makes it unnecessary.
    """

    name: str
    symptom: str
    versions: str
    how: str
    delete_when: str


SHIMS = (
    Shim(
        "numpy aliases",
        "Config() raises AttributeError: np.float_ was removed",
        "numpy >= 2.0 (np.float already since 1.24)",
        "KDConfig.compatibility_settings adds only the missing names",
        "RecBole stops reading np.float, np.long and np.bool",
    ),
    Shim(
        "dok_matrix._update",
        "LightGCN, NGCF, NCL, GCMC, SpectralCF, KGIN, MCCLK raise AttributeError",
        "scipy >= 1.13",
        "compat.apply adds the method to scipy.sparse.dok_matrix",
        "RecBole builds its adjacency matrices from coordinates",
    ),
    Shim(
        "torch.load weights_only",
        "every run trains to the end and then dies at the test step with UnpicklingError",
        "torch >= 2.6",
        "our trainer saves and loads plain tensors; recbole_kd.checkpoint reads RecBole's files",
        "RecBole stops pickling its Config into checkpoints",
    ),
    Shim(
        "quick_start imports ray",
        "No module named 'pkg_resources', or np.bool8, when recbole.quick_start is imported",
        "setuptools >= 81, numpy >= 2.0",
        "recbole_kd.quick_start is our own; recbole.quick_start is never imported",
        "RecBole imports ray only for hyper-parameter search",
    ),
    Shim(
        "anomaly detection",
        "every training step records Python stacks: BPR is about a fifth slower",
        "every RecBole 1.x, once any of its sequential models is imported (sine.py)",
        "compat.import_sequential_models imports them first and puts the setting back",
        "RecBole's sine.py stops calling set_detect_anomaly(True)",
    ),
    Shim(
        "in-place fillna",
        "missing values stay NaN without an error",
        "pandas >= 3.0",
        "setup.py requires pandas < 3 and compat.check_versions refuses a newer one",
        "RecBole assigns the result of fillna",
    ),
    Shim(
        "trainer's folders",
        "every trainer makes ./log_tensorboard and checkpoint_dir, whether it writes there or not",
        "every RecBole 1.x",
        "compat.no_default_folders, entered while our trainer is constructed",
        "RecBole makes its folders when it writes to them",
    ),
    Shim(
        "catalogue metrics",
        "ItemCoverage, GiniIndex, AveragePopularity, TailPercentage raise AttributeError: no 'cpu'",
        "RecBole 1.2.1",
        "recbole_kd.evaluation.TopKCollector.get_data_struct",
        "RecBole's Collector moves only tensors",
    ),
    Shim(
        "float32 times",
        "interactions up to 128 s apart are ordered, and split, by their place in the file",
        "every RecBole 1.x",
        "recbole_kd.sequences.ExactTime keeps float64",
        "RecBole keeps times in float64",
    ),
)


def numpy_aliases() -> list[str]:
    """Add the numpy names RecBole reads and this numpy lacks.

    Returns:
        The names added now; empty on a second call.
    """
    added = []
    for name, value in NUMPY_ALIASES.items():
        if name not in np.__dict__:
            setattr(np, name, value)
            added.append(name)
    return added


def _dok_update(self: Any, entries: dict[tuple[int, int], Any]) -> None:
    """Set many entries at once, without the per-entry bounds check of ``update``."""
    self._dict.update(entries)


def scipy_dok_update() -> bool:
    """Give ``dok_matrix`` the ``_update`` that RecBole's graph models call.

    Returns:
        Whether it was missing.
    """
    try:
        from scipy.sparse import dok_matrix
    except ImportError:  # doctor says so
        return False
    if hasattr(dok_matrix, "_update"):
        return False
    dok_matrix._update = _dok_update
    return True


def import_sequential_models() -> Any:
    """RecBole's package of sequential models, without the anomaly detection it switches on."""
    import torch

    before = torch.is_anomaly_enabled()
    package = importlib.import_module("recbole.model.sequential_recommender")
    torch.autograd.set_detect_anomaly(before)
    return package


@contextlib.contextmanager
def no_default_folders() -> Iterator[None]:
    """Keep RecBole's ``Trainer.__init__`` from creating ``./log_tensorboard`` and its folder.

    What makes them is replaced for the time of the ``with`` block only; our trainer has a folder
    and a TensorBoard writer of its own, or none.
    """
    import recbole.trainer.trainer as module

    originals = module.get_tensorboard, module.ensure_dir
    module.get_tensorboard = module.ensure_dir = lambda _: None
    try:
        yield
    finally:
        module.get_tensorboard, module.ensure_dir = originals


def _release(version: str) -> tuple[int, ...]:
    parts = []
    for part in version.split("+")[0].split("."):
        digits = "".join(c for c in part if c.isdigit())
        if not digits:
            break
        parts.append(int(digits))
    return tuple(parts)


def version_problems(installed: dict[str, str] | None = None) -> list[str]:
    """Lines that say which installed version is outside :data:`REQUIREMENTS`.

    Args:
        installed: Library -> version; by default what is installed here.
    """
    problems = []
    for name, (low, high) in REQUIREMENTS.items():
        if installed is None:
            try:
                version = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                problems.append(f"{name} is missing: pip install '{name}>={low},<{high}'")
                continue
        else:
            version = installed[name]
        if not _release(low) <= _release(version) < _release(high):
            problems.append(
                f"{name} {version} is installed, {name}>={low},<{high} is needed: "
                f"pip install '{name}>={low},<{high}'"
            )
    return problems


def check_versions(installed: dict[str, str] | None = None) -> None:
    """Refuse libraries that would make RecBole fail or, worse, be silently wrong.

    Raises:
        KDError: A library is missing or outside its tested range.
    """
    problems = version_problems(installed)
    if problems:
        raise KDError(problems[0])


def apply() -> dict[str, Any]:
    """Install every patch; called once by ``import recbole_kd``.

    Versions are checked where a run's configuration is made, so that ``recbole-kd doctor`` can
    still say what is wrong with them.

    Returns:
        What was changed, for ``recbole-kd doctor``.
    """
    # RecBole's deprecated calls are known and pinned above; a user can do nothing about them.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"recbole\.")
    return {
        "numpy aliases": numpy_aliases(),
        "dok_matrix._update": scipy_dok_update(),
        "recbole was imported first": "recbole" in sys.modules,
    }
