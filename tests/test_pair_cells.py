"""The table of docs/pairs.md: made from declarations, and every cell of it run for two steps."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from kd_helpers import small_options

from recbole_kd import pairs, training
from recbole_kd.cli import main
from recbole_kd.config import KDConfig
from recbole_kd.data import Split, load_split
from recbole_kd.errors import KDError
from recbole_kd.listed import ListedTeacher
from recbole_kd.loaders import make_loaders
from recbole_kd.methods.base import NEEDS
from recbole_kd.mixture import MixedTeacher
from recbole_kd.options import Sources
from recbole_kd.pairs import Kind
from recbole_kd.registry import SCRATCH, method_class, method_names, methods_without
from recbole_kd.score_file import Found, ScoreLists
from recbole_kd.scoring import factorised_names, scorer_for
from recbole_kd.teacher import FrozenTeacher, Teacher
from recbole_kd.teachers import TeacherFinder, identity, offers

PAGE = Path(__file__).resolve().parents[1] / "docs" / "pairs.md"
BEGIN, END = "<!-- recbole-kd pairs -->\n\n", "\n<!-- end -->"
CLASSES = {name: method_class(name) for name in method_names() if name != SCRATCH}
TEACHERS = [(k, name) for k in pairs.teacher_kinds() for name in k.models]
LISTED = 80
"""Items a user in a file of scores."""

WITHOUT_MODEL = [(k, k.name) for k in pairs.teacher_kinds() if not k.models]
STUDENTS = [(k, name) for k in pairs.student_kinds() for name in k.models]
PAIRS = [
    pytest.param(*teacher, *student, id=f"{teacher[1]}-{student[1]}-{student[0].name}")
    for teacher in TEACHERS + WITHOUT_MODEL
    for student in STUDENTS
]
OWN: dict[str, dict[str, Any]] = {
    "SASRec": {"hidden_size": 8, "inner_size": 8, "n_layers": 1, "n_heads": 1},
    "HSTU": {
        "hidden_size": 8,
        "attention_dim": 4,
        "linear_dim": 4,
        "n_layers": 1,
        "num_negatives": 8,
        "relative_bias": "position",
    },
}
"""Sizes beside those of ``tiny``."""


# -- the page ----------------------------------------------------------------------------------


def test_the_page_has_the_table_of_the_declarations(capsys: pytest.CaptureFixture[str]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
    assert text.partition(BEGIN)[2].partition(END)[0] == pairs.tables()
    assert main(["pairs"]) == 0
    assert capsys.readouterr().out == pairs.tables()


def test_a_need_gives_a_cell_of_its_own() -> None:
    assert set(pairs.MISSING) == set(NEEDS)
    kinds = {kind.name: kind for kind in pairs.teacher_kinds()}
    assert kinds["general"].offers == kinds["sequential"].offers == set(NEEDS)
    assert kinds["other, by epochs"].offers == {"trajectory"}
    assert kinds["other, in one pass"].offers == kinds["score file"].offers == set()
    for name, cls in CLASSES.items():
        assert set(pairs.missing(cls, kinds["score file"])) == set(cls.needs), name
        assert pairs.missing(cls, kinds["general"]) == []


def test_every_model_is_in_its_kind() -> None:
    for kind, name in TEACHERS:
        assert offers(tiny.config(name).model_class) == kind.offers, name
    with_vectors = {name for kind, name in TEACHERS if "vectors" in kind.offers}
    assert {name for _, name in STUDENTS} == with_vectors == set(factorised_names())


# -- every cell ----------------------------------------------------------------------------------


def options(name: str, **more: Any) -> dict[str, Any]:
    own = {**tiny.MODEL_OPTIONS.get(name, {}), **OWN.get(name, {})}
    return {key: value for key, value in own.items() if key != "MAX_ITEM_LIST_LENGTH"} | more


@functools.cache
def data() -> str:
    """The last 15 interactions of each user, so that any method finds items enough to sample."""
    left: dict[str, int] = {}
    rows = []
    for row in sorted(tiny.interactions(), key=lambda row: -float(row[3])):
        left[row[0]] = left.get(row[0], 15) - 1
        if left[row[0]] >= 0:
            rows.append(row)
    return tiny.write("last15", rows)


@functools.cache
def config(method: str, student: str, rows: str | None, teacher: str, role: str) -> KDConfig:
    """Options of a role; the pair has a sequential member, so that all share one split."""
    cls = method_class(method)
    values = {
        **tiny.OPTIONS,
        **({} if cls is None else small_options(cls)),
        "data_path": str(tiny.data_path()),
        "eval_targets": "all",
        "MAX_ITEM_LIST_LENGTH": 8,
        "train_batch_size": 32,
        "student": options(student, **({"sequence_training": rows} if rows else {})),
    }
    if cls is not None:
        values["teacher"] = options(teacher)
    sources = Sources.collect(
        method, data(), student, None if cls is None else teacher, options=values
    )
    return KDConfig(sources, role)


@functools.cache
def split() -> Split:
    return load_split(config("Scratch", "SASRec", "prefix", "SASRec", "student"))


class Student:
    """A model with its first weights and two batches; used anew for every cell."""

    def __init__(self, name: str, rows: str | None):
        self.config = config("CE", name, rows, "SASRec", "student")
        self.model = training.build_plain(self.config, split())
        self.scorer = scorer_for(self.model, split().history)
        self.first = {k: v.clone() for k, v in self.model.state_dict().items()}
        loader = make_loaders(self.config, split())[0]
        self.batches = [batch for batch, _ in zip(loader, range(2), strict=False)]

    def fresh(self) -> Student:
        self.model.load_state_dict(self.first)
        self.model.train()
        return self


@functools.cache
def student(name: str, rows: str | None) -> Student:
    return Student(name, rows)


@functools.cache
def teacher(name: str) -> Teacher:
    """A model of random weights that are far from equal, with three earlier epochs.

    ``score file`` is the best items of one, ``several, mixed`` two of them.
    """
    if name == "score file":
        return _listed(teacher("SASRec"))
    if name == "several, mixed":
        both = [teacher("BPR"), teacher("NeuMF")]
        return MixedTeacher(both, (0.3, 0.7), 1.0, split().history)
    frozen = [_frozen(name, seed) for seed in range(4)]
    if "trajectory" in offers(type(frozen[-1].model)):
        frozen[-1].trajectory = [lambda part=part: part for part in frozen[:-1]]
    return frozen[-1]


def _listed(guide: Teacher) -> ListedTeacher:
    """The best items of a teacher, as a file of scores holds them."""
    best, scores = guide.top_k(LISTED)
    known = guide.knows_user.nonzero().squeeze(1)
    counts = torch.zeros(len(guide.knows_user), dtype=torch.int64)
    counts[known] = LISTED
    items, order = best[known].sort(dim=1)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    values = scores[known].gather(1, order).flatten()
    lists = ScoreLists(offsets, items.flatten().int(), values, Found(), "a digest")
    return ListedTeacher(lists, split().history)


def weights(guide: Teacher) -> dict[str, torch.Tensor]:
    """Copies of all weights behind a teacher, by name; none behind a file."""
    inner = guide.teachers if isinstance(guide, MixedTeacher) else [guide]
    models = [teacher.model for teacher in inner if isinstance(teacher, FrozenTeacher)]
    return {
        f"{n}.{k}": v.clone()
        for n, model in enumerate(models)
        for k, v in model.state_dict().items()
    }


def _frozen(name: str, seed: int) -> FrozenTeacher:
    model = training.build_plain(config("CE", "SASRec", "prefix", name, "teacher"), split())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.5, generator=generator)
    return FrozenTeacher(scorer_for(model, split().history), *identity(split()), split().history)


def rows_of(kind: Kind) -> str | None:
    """``prefix`` or ``causal`` of a sequential kind."""
    return kind.name.split()[1] if kind.name.startswith("sequential") else None


def works(method: str, guide: str, name: str, rows: str | None) -> None:
    torch.manual_seed(0)
    cls: Any = CLASSES[method]
    learner, guiding = student(name, rows).fresh(), teacher(guide)
    before = weights(guiding)
    chosen = config(method, name, rows, "SASRec", "student")
    cls.check(chosen, split().history)
    cls.check_teacher(chosen, guiding)
    distiller = cls(
        chosen, split().train, learner.model, learner.scorer, guiding, split().history
    ).train()
    optimizer = torch.optim.Adam(distiller.parameters(), lr=0.01)
    distiller.begin_epoch(1, 2)
    for batch in learner.batches:
        base, kd = distiller.calculate_loss(batch)
        assert torch.isfinite(base)
        assert torch.isfinite(kd)
        assert kd > 0
        assert kd.requires_grad
        optimizer.zero_grad()
        (base + kd).backward()
        optimizer.step()
    moved = learner.model.state_dict()
    assert [k for k, v in moved.items() if not torch.isfinite(v).all()] == []
    tables = [k for k in moved if "embedding" in k or "emb." in k]
    assert [k for k in tables if torch.equal(moved[k], learner.first[k])] == []
    assert tables
    after = weights(guiding)
    assert [k for k in before if not torch.equal(before[k], after[k])] == []


def is_refused(method: str, guide: str, name: str, rows: str | None, needs: list[str]) -> None:
    mine = config(method, name, rows, "SASRec", "student")
    if guide in [name for _, name in WITHOUT_MODEL]:
        # In a run its name is refused before it is opened.
        with pytest.raises(KDError, match=NEEDS[needs[0]]):
            CLASSES[method].check_teacher(mine, teacher(guide))
        return
    theirs = config(method, "SASRec", "prefix", guide, "teacher")
    with pytest.raises(KDError) as refusal:
        TeacherFinder(CLASSES[method], mine, theirs, split(), saved=True).check()
    message = str(refusal.value)
    assert "\n" not in message
    assert message.startswith(f"--teacher={guide}: --model={method} needs {NEEDS[needs[0]]}; ")
    lacking = set(NEEDS) - offers(theirs.model_class)
    assert message.endswith(f"do without: {', '.join(methods_without(*lacking))}")


@pytest.mark.parametrize("method", CLASSES)
@pytest.mark.parametrize(("guide_kind", "guide", "kind", "name"), PAIRS)
def test_every_cell_works_or_is_refused(
    method: str, guide_kind: Kind, guide: str, kind: Kind, name: str
) -> None:
    needs = pairs.missing(CLASSES[method], guide_kind)
    if needs:
        is_refused(method, guide, name, rows_of(kind), needs)
    else:
        works(method, guide, name, rows_of(kind))
