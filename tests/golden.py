"""Recorded values of a public reference implementation, and how a runner compares with them.

A file is called ``<prefix>_<name>.npz``; its prefix is the method. Every file is checked by the
runners of its prefix, with whatever sizes and hyper-parameters it holds.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kd_helpers import TinyModel, World, pad
from torch import Tensor

from recbole_kd.candidates import gumbel_top_k
from recbole_kd.history import UserHistory
from recbole_kd.methods.base import Distiller
from recbole_kd.rows import Rows

PREFIXES = {
    "lists": ("kd", "rcekd"),
    "ranking": ("cd", "dcd", "hetcomp", "rd", "rrd", "unkd"),
    "embedding": ("de", "fit", "htd", "vkd"),
}
"""The prefixes that have runners, by the group of methods that a test module checks."""

RECORDED_DRAWS = 4000
"""Repetitions behind the recorded inclusion frequencies."""


def golden_folder() -> Path:
    """The folder of recorded values: a shared folder beside the checkout, or a named one."""
    given = os.environ.get("RECBOLE_KD_SHARED")
    root = Path(given) if given else Path(__file__).resolve().parents[2] / "shared"
    return root / "golden" / "kd"


@dataclass(frozen=True)
class Tolerance:
    """Relative deviations allowed; ``zero_grad`` is absolute, for gradients that vanish."""

    loss: float
    grad: float
    zero_grad: float


TOLERANCES = {
    torch.float64: Tolerance(1e-9, 1e-9, 1e-9),
    torch.float32: Tolerance(1e-5, 1e-4, 1e-5),
}


def dots(users: Tensor, items: Tensor) -> Tensor:
    """Scores of the items ``[B, K, d]`` for the users ``[B, d]``, without the code under test."""
    return (items @ users.unsqueeze(2)).squeeze(2)


class Golden:
    """One file, as tensors."""

    def __init__(self, path: Path):
        self.path = path
        with np.load(path, allow_pickle=False) as content:
            self.arrays = {name: torch.from_numpy(content[name]) for name in content.files}

    def __getitem__(self, name: str) -> Tensor:
        return self.arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def hp(self, name: str) -> Any:
        """A hyper-parameter, as a Python number."""
        return self.arrays[f"hp_{name}"].item()

    def exact(self, name: str) -> Tensor:
        """A value, from an evaluation without cancellation where the reference's has some."""
        return self.arrays.get(f"{name}_stable", self.arrays[name])

    @property
    def n_users(self) -> int:
        return len(self["S_user"])

    @property
    def n_items(self) -> int:
        return len(self["S_item"])

    def student(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The student's tables as leaves that collect a gradient."""
        return self["S_user"].to(dtype).requires_grad_(), self["S_item"].to(dtype).requires_grad_()

    def teacher(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self["T_user"].to(dtype), self["T_item"].to(dtype)

    def teacher_scores(self, users: Tensor, items: Tensor, dtype: torch.dtype) -> Tensor:
        vectors = self.teacher(dtype)
        return dots(vectors[0][users], vectors[1][items])

    def seen(self) -> Tensor:
        """Which items are train items of each user, ``[U, I]``, bool."""
        mask = torch.zeros(self.n_users, self.n_items, dtype=torch.bool)
        mask[tuple(self["train_pairs"].t())] = True
        return mask

    def world(self) -> World:
        """The same problem in RecBole's ids, which are larger by 1."""
        users, items = (self["train_pairs"] + 1).t()
        return World(
            TinyModel(pad(self["S_user"]), pad(self["S_item"])),
            TinyModel(pad(self["T_user"]), pad(self["T_item"])),
            UserHistory.from_pairs(users, items, self.n_users + 1, self.n_items + 1),
        )

    def batch(self) -> dict[str, Tensor]:
        names = {"user_id": "batch_users", "item_id": "batch_pos", "neg_item_id": "batch_neg"}
        return {key: self[name] + 1 for key, name in names.items()}

    def chunk_budget(self, rows: int) -> float:
        """Memory, in GiB, at which a pass over all scores goes in chunks of that many users."""
        return rows * 16 * (self.n_items + 1) / 2**30


# -- comparisons ------------------------------------------------------------------------------


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Deviations relative to the largest entry."""
    assert actual.shape == expected.shape
    deviation = (actual.double() - expected.double()).abs().max().item()
    largest = max(expected.abs().max().item(), 1e-300)
    assert deviation <= tolerance * largest, f"{deviation:.3g} off, the largest is {largest:.3g}"


def assert_gradient(found: Tensor, recorded: Tensor, tolerance: Tolerance) -> None:
    """One gradient; where the recorded one vanishes, by its size."""
    if recorded.abs().max() < 1e-9:
        assert found.shape == recorded.shape
        assert found.abs().max() <= tolerance.zero_grad, f"{found.abs().max():.3g} is not 0"
    else:
        assert_close(found, recorded, tolerance.grad)


def assert_gradients(golden: Golden, gradients: list[Tensor], tolerance: Tolerance) -> None:
    """The gradients of the student's two tables."""
    for name, gradient in zip(("grad_S_user", "grad_S_item"), gradients, strict=True):
        assert_gradient(gradient, golden.exact(name), tolerance)


def assert_losses(
    golden: Golden,
    losses: Tensor,
    student: tuple[Tensor, Tensor],
    dtype: torch.dtype,
    tolerance: Tolerance | None = None,
) -> None:
    """One loss a row, its sum, and the gradients of the sum."""
    tolerance = tolerance or TOLERANCES[dtype]
    assert losses.dtype == dtype
    assert_close(losses, golden.exact("loss_per_row"), tolerance.loss)
    assert_close(losses.sum(), golden.exact("loss"), tolerance.loss)
    assert_gradients(golden, list(torch.autograd.grad(losses.sum(), student)), tolerance)


def assert_production(golden: Golden, distiller: Distiller) -> None:
    """The distiller's mean loss times its rows is the recorded sum; the same for gradients."""
    batch = golden.batch()
    n_rows = len(batch["user_id"])
    rows = distiller.rows.next(batch["user_id"])
    users, counts = batch["user_id"].unique(return_counts=True)
    unique = distiller.rows.kind == "unique"
    assert torch.equal(rows.users, users)
    assert torch.equal(rows.weights, torch.ones(len(users)) if unique else counts.float())
    loss = distiller.kd_loss(rows)
    assert_step(golden, distiller, loss)
    if not unique:
        repeated = distiller.kd_loss(Rows(batch["user_id"], torch.ones(n_rows)))
        assert_close(repeated, loss.detach(), 1e-5)


def assert_step(golden: Golden, distiller: Distiller, loss: Tensor) -> None:
    """The losses of a training step, and the student's gradient of ``loss``."""
    tolerance, batch = TOLERANCES[torch.float32], golden.batch()
    n_rows, recorded = len(batch["user_id"]), golden.exact("loss")
    assert_close(loss * n_rows, recorded, tolerance.loss)
    loss.backward()
    student = distiller.student
    gradients = [student.user_embedding.weight.grad, student.item_embedding.weight.grad]
    assert not any(gradient[0].any() for gradient in gradients)
    assert_gradients(golden, [gradient[1:] * n_rows for gradient in gradients], tolerance)
    base, weighted = distiller.calculate_loss(batch)
    assert_close(base * n_rows, golden["base_loss"], tolerance.loss)
    total = golden["base_loss"] + golden.hp("lmbda") * recorded
    if "loss_stable" not in golden:
        assert_close(total, golden["total_loss"], 1e-9)
    assert_close((base + weighted) * n_rows, total, tolerance.loss)


# -- samplers ---------------------------------------------------------------------------------


def inclusion(log_weights: Tensor, size: int, draws: int) -> Tensor:
    """How often each position is drawn without replacement, ``[U, M]``."""
    generator = torch.Generator().manual_seed(11)
    hits = torch.zeros(log_weights.shape, dtype=torch.float64)
    for _ in range(10):
        many = log_weights.repeat(draws // 10, 1)
        drawn = torch.zeros(many.shape, dtype=torch.bool)
        noise = torch.empty(many.shape).exponential_(generator=generator)
        drawn.scatter_(1, gumbel_top_k(many, size, noise), True)
        hits += drawn.view(-1, *log_weights.shape).double().sum(0)
    return hits / draws


def assert_inclusion(log_weights: Tensor, size: int, recorded: Tensor) -> None:
    """Inclusion frequencies of the sampler against the recorded ones."""
    draws = 4000
    found = inclusion(log_weights, size, draws)
    assert torch.allclose(found.sum(1), torch.full((len(found),), float(size), dtype=found.dtype))
    assert_frequencies(found, draws, recorded, RECORDED_DRAWS)
    # A shift of all lists would hide in single entries. The items drawn from the upper half of a
    # list have a variance of at most a quarter each.
    upper = slice(0, log_weights.shape[1] // 2)
    shift = (found - recorded)[:, upper].sum(1).mean().abs()
    assert shift < 5 * np.sqrt(size / 4 * (1 / draws + 1 / RECORDED_DRAWS) / len(found))


def assert_frequencies(
    found: Tensor, draws: int, recorded: Tensor, recorded_draws: float = np.inf
) -> None:
    """Two shares of so many draws have the same mean; or a share has that of its law.

    What the law expects less than ten times is left out: its counts are far from normal.
    """
    p, least = (found + recorded) / 2, 1 / (2 * min(draws, recorded_draws))
    if not np.isfinite(recorded_draws):
        often = recorded * draws >= 10
        found, recorded, p = found[often], recorded[often], recorded[often]
    p = p.clamp(least, 1 - least)
    z = (found - recorded) / (p * (1 - p) * (1 / draws + 1 / recorded_draws)).sqrt()
    assert z.abs().max() < 5.2, f"z of {z.abs().max():.2f}"


def assert_same_up_to_a_constant(found: Tensor, recorded: Tensor, tolerance: float) -> None:
    """Log-weights of lists, ``[U, M]``; entries that are not finite in both are left out."""
    difference = found.double() - recorded
    known = recorded.isfinite()
    assert known[:, 0].all()
    assert (difference - difference[:, :1])[known].abs().max() <= tolerance


# -- discovery --------------------------------------------------------------------------------

Check = Callable[[Golden, pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Where:
    """A check of those files only to which it applies."""

    applies: Callable[[Golden], bool]
    check: Check

    def __call__(self, golden: Golden, patch: pytest.MonkeyPatch) -> None:
        self.check(golden, patch)


def in_dtype(check: Callable[[Golden, torch.dtype], None], dtype: torch.dtype) -> Check:
    return lambda golden, _: check(golden, dtype)


def in_both_types(check: Callable[[Golden, torch.dtype], None]) -> dict[str, Check]:
    """A check of pure functions, twice."""
    types = {"float64": torch.float64, "float32": torch.float32}
    return {name: in_dtype(check, dtype) for name, dtype in types.items()}


def cases(group: str, runners: Mapping[str, Mapping[str, Check]]) -> list[Any]:
    """A case a file and check of one group of :data:`PREFIXES`.

    Where there is no file at all, and for a file whose prefix no group has (with the first group,
    so that it is told once), a case that says so and is skipped.
    """
    assert sorted(runners) == sorted(PREFIXES[group])
    found: list[Any] = []
    for path in sorted(golden_folder().glob("*.npz")):
        prefix = path.stem.partition("_")[0]
        for name, check in runners.get(prefix, {}).items():
            if not isinstance(check, Where) or check.applies(Golden(path)):
                found.append(pytest.param(path, check, id=f"{path.stem}-{name}"))
        known = any(prefix in prefixes for prefixes in PREFIXES.values())
        if not known and group == next(iter(PREFIXES)):
            found.append(skipped(path.stem, f"no runner for golden values of '{prefix}'"))
    if not found:
        reason = f"no golden values of {group} methods in {golden_folder()}; set RECBOLE_KD_SHARED"
        found.append(skipped("none", reason))
    return found


def skipped(name: str, reason: str) -> Any:
    """A case that is not run, and why."""
    return pytest.param(None, None, id=name, marks=pytest.mark.skip(reason=reason))
