"""Which method works with which pair: a table made from what methods need and models offer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from recbole_kd.registry import SCRATCH, backbone_class, method_class, method_names
from recbole_kd.scoring import (
    CosineScorer,
    FactorScorer,
    GraphScorer,
    SequenceScorer,
    factorised_adapter,
    factorised_names,
)
from recbole_kd.teachers import offers

BY_EPOCHS = ("NeuMF", "MultiVAE")
"""Examples of teachers without vectors that are trained by epochs."""

IN_ONE_PASS = ("ItemKNN", "EASE")
"""Examples of teachers without vectors that are made in one pass over the data."""

MISSING = {"vectors": "no vectors", "trajectory": "no epochs"}
"""A cell of the table where a need is not met."""


@dataclass(frozen=True)
class Kind:
    """Models that are alike as teachers, or as students.

    Attributes:
        name: Heading of its column or row.
        models: Names of models; all of them, or examples.
        offers: What a teacher has beside scores, of :data:`recbole_kd.methods.base.NEEDS`.
        more: What follows the names.
    """

    name: str
    models: tuple[str, ...] = ()
    offers: frozenset[str] = frozenset()
    more: str = ""

    @property
    def listed(self) -> str:
        """The names, and what follows them."""
        return ", ".join([*self.models, *filter(None, [self.more])])


def teacher_kinds() -> list[Kind]:
    """Every kind of teacher, those with vectors first."""
    general = tuple(name for name in factorised_names() if not _sequential(name))
    sequential = tuple(name for name in factorised_names() if _sequential(name))
    return [
        _teachers("general", general),
        _teachers("sequential", sequential),
        _teachers("other, by epochs", BY_EPOCHS, "and so on"),
        _teachers("other, in one pass", IN_ONE_PASS, "and so on"),
        Kind("score file", more="a file of scores"),
        Kind("several, mixed", more="any of these as one"),
    ]


def student_kinds() -> list[Kind]:
    """Every kind of student; a model that learns in two ways is in two of them."""
    found: dict[str, list[str]] = {}
    for name in factorised_names():
        for kind in _ways(name):
            found.setdefault(kind, []).append(name)
    order = ["general", "graph", "cosine", "sequential, prefix rows", "sequential, causal rows"]
    return [Kind(kind, tuple(found[kind])) for kind in order if kind in found]


def missing(method: type[Any], teacher: Kind) -> list[str]:
    """What a method needs of a teacher and does not get, of :data:`MISSING`, in its order.

    Args:
        method: Class of a distillation method.
        teacher: A kind of teacher.
    """
    needs = set(getattr(method, "needs", ())) - teacher.offers
    return [need for need in MISSING if need in needs]


def tables() -> str:
    """The tables of ``docs/pairs.md``, in Markdown: kinds of teachers, of students, and methods."""
    teachers = teacher_kinds()
    lines = [*_table(["teacher", "models"], [[k.name, k.listed] for k in teachers]), ""]
    lines += [*_table(["student", "models"], [[k.name, k.listed] for k in student_kinds()]), ""]
    rows = []
    for name in method_names():
        method = method_class(name)
        if name != SCRATCH and method is not None:
            rows.append([f"`{name}`", *(_cell(method, kind) for kind in teachers)])
    lines += _table(["method", *(kind.name for kind in teachers)], rows)
    return "\n".join(lines) + "\n"


def _cell(method: type[Any], teacher: Kind) -> str:
    lacks = [MISSING[need] for need in missing(method, teacher)]
    return ", ".join(lacks) or "yes"


def _table(heads: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]


def _teachers(name: str, models: tuple[str, ...], more: str = "") -> Kind:
    shared = [offers(backbone_class(model)) for model in models]
    return Kind(name, models, frozenset.intersection(*shared), more)


def _sequential(name: str) -> bool:
    return issubclass(_adapter(name), SequenceScorer)


def _adapter(name: str) -> type[FactorScorer]:
    adapter = factorised_adapter(backbone_class(name))
    assert adapter is not None, name
    return adapter


def _ways(name: str) -> list[str]:
    """The kinds of students a model belongs to."""
    if _sequential(name):
        trained = getattr(backbone_class(name), "sequence_training", ("prefix",))
        return [f"sequential, {rows} rows" for rows in trained]
    special = {CosineScorer: "cosine", GraphScorer: "graph"}
    return [special.get(_adapter(name), "general")]
