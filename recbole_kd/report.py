"""The table of a run: accuracy, size and speed of teacher, scratch and distilled student."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from tabulate import tabulate
from torch.utils.benchmark import Timer

from recbole_kd.errors import KDError
from recbole_kd.scoring import Scorer, model_size

TIMED_SECONDS = 0.2
"""Least time for which a model is asked again and again."""


@dataclass
class Row:
    """One model of the table.

    Attributes:
        role: What it is in this run.
        model: Name of its model.
        test_result: Test metrics.
        parameters: Learned numbers; ``None`` where there is no model, or it has none.
        weight_bytes: Bytes of its weights; ``None`` likewise.
        latency_ms: Median milliseconds of a top-10 for one user; ``None`` for a model that needs
            more than the user, and where there is none.
    """

    role: str
    model: str
    test_result: dict[str, float]
    parameters: int | None
    weight_bytes: int | None
    latency_ms: float | None


def make_row(
    role: str, name: str, scorer: Scorer | None, result: dict[str, float], users: Any
) -> Row:
    """Measure one model.

    Args:
        role: What it is in this run.
        name: Name of its model.
        scorer: Its scorer; ``None`` for scores without a model.
        result: Its test metrics.
        users: Some user ids, ``[n]``.
    """
    if scorer is None:
        return Row(role, name, result, None, None, None)
    return Row(role, name, result, *model_size(scorer.model), latency(scorer, users))


@torch.no_grad()
def latency(scorer: Scorer, users: Any, k: int = 10) -> float | None:
    """Median milliseconds to rank all items for one user and take the best ``k``.

    Representations that do not depend on the request (propagated embeddings) are computed before.
    """
    timer = top_k_timer(scorer, users[:1], k)
    if timer is None:
        return None
    with scorer.step():
        return timer.blocked_autorange(min_run_time=TIMED_SECONDS).median * 1e3


@torch.no_grad()
def top_k_timer(scorer: Scorer, users: Any, k: int = 10) -> Timer | None:
    """A timer of ranking all items for some users and taking the best ``k`` of each.

    It is run inside ``scorer.step()``, without gradient, on the threads torch has.

    Args:
        scorer: A model's scorer; the model is put in eval mode.
        users: User ids, ``[n]``.
        k: Length of the lists.

    Returns:
        The timer; ``None`` for a model that needs more than the user.
    """
    scorer.model.eval()
    users = users.to(scorer.device)
    try:
        scorer.score_all(scorer.encode_now(users))
    except KDError:
        return None
    return Timer(
        "s = scorer.score_all(scorer.encode_now(users)); s.topk(k, dim=1)",
        globals={"scorer": scorer, "users": users, "k": min(k, scorer.n_items)},
        num_threads=torch.get_num_threads(),
    )


def table(rows: list[Row], metric: str, reference_role: str = "teacher") -> str:
    """The rows as text, with each model's share of the teacher's validation metric.

    Args:
        rows: The models.
        metric: Name of the metric compared, in RecBole's lower case.
        reference_role: Role of the row that the others are a share of, if there is one.
    """
    names = list(rows[0].test_result)
    teacher = next((r for r in rows if r.role == reference_role), None)
    lines = []
    for row in rows:
        line: list[Any] = [row.role, row.model]
        line += [f"{row.test_result[n]:.4f}" for n in names]
        if teacher is not None:
            reference = teacher.test_result.get(metric, 0)
            line.append(f"{row.test_result[metric] / reference:.1%}" if reference else "-")
        number = "-" if row.parameters is None else f"{row.parameters:,}"
        size = "-" if row.weight_bytes is None else f"{row.weight_bytes / 2**20:.2f} MiB"
        ms = "-" if row.latency_ms is None else f"{row.latency_ms:.3f} ms"
        lines.append([*line, number, size, ms])
    share = [f"{metric} / {reference_role}"] if teacher is not None else []
    headers = ["role", "model", *names, *share, "parameters", "weights", "top-10, one user"]
    return tabulate(lines, headers=headers, tablefmt="github", disable_numparse=True)
