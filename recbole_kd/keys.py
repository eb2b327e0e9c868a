"""Which options a run reads; a key that none of its parts reads is refused."""

from __future__ import annotations

from collections.abc import Sequence

from recbole.utils import ModelType
from recbole.utils.argument_list import (
    dataset_arguments,
    evaluation_arguments,
    general_arguments,
    training_arguments,
)

from recbole_kd.defaults import (
    method_defaults,
    model_defaults,
    readers_of,
    recbole_yaml,
    shipped,
)
from recbole_kd.errors import KDError, did_you_mean
from recbole_kd.options import ROLE_SECTIONS, SCORE_FILES, SECTIONS, Sources, flatten
from recbole_kd.registry import SCRATCH, backbone_class, short_name
from recbole_kd.scoring import takes_temperature

UNUSED_RECBOLE_KEYS = {
    "save_dataset",
    "dataset_save_path",
    "save_dataloaders",
    "dataloaders_save_path",
    "config_file",
}
"""RecBole's pickled data caches: unsafe to load and never read here."""

UNLISTED_RECBOLE_KEYS = {"encoding", "tail_ratio"}
"""Keys that RecBole's data sets and metrics read and that none of its lists and files names."""

SEQUENTIAL_KEYS = {
    "filter_history",
    "ITEM_LIST_LENGTH_FIELD",
    "LIST_SUFFIX",
    "MAX_ITEM_LIST_LENGTH",
    "POSITION_FIELD",
}
"""Keys of sequential models that teacher and student share."""

SCORE_FILE_KEYS = {"missing_score", "min_listed_items"}
"""Keys that only a teacher in a file of scores reads."""

SECTION_KEYS = {
    "seed",
    "epochs",
    "train_batch_size",
    "learner",
    "learning_rate",
    "train_neg_sample_args",
    "eval_step",
    "stopping_step",
    "clip_grad_norm",
    "weight_decay",
    "adam_eps",
    "require_pow",
    "enable_amp",
    "enable_scaler",
    "transform",
    "valid_metric",
    "save_every",
    "save_last_seconds",
}
"""Training keys that a section may set for one role."""


ROLE_KEYS = {"score_temperature"}
"""Keys that hold for one role and are said in its section."""

CHECKPOINT_KEYS = {"checkpoint", *ROLE_KEYS}
"""Keys of the section of a teacher that is opened and not trained."""

SEVERAL_KEYS = {"teacher_weights", "teacher_combine", "teacher_tau"}
"""Keys that say how several teachers are combined."""


def model_keys(name: str | None, option: str) -> set[str]:
    """Keys a model reads: RecBole's YAML, ours, or the ``defaults`` of an outside class."""
    if name is None:
        return set()
    cls = backbone_class(name, option)
    keys = set(recbole_yaml("model", f"{short_name(name)}.yaml"))
    ours = model_defaults(name) or {}
    for role in ROLE_SECTIONS:
        keys |= set(flatten(ours, role))
    if cls.type == ModelType.SEQUENTIAL:
        keys |= SEQUENTIAL_KEYS | set(shipped("family", "sequential.yaml") or {})
    return keys


def known_keys(sources: Sources) -> dict[str | None, set[str]]:
    """The keys each part of the run reads: ``None`` for the top level, then each section."""
    run = set(recbole_yaml("overall.yaml")) | set(recbole_yaml("dataset", "sample.yaml"))
    run |= UNLISTED_RECBOLE_KEYS
    run |= {*dataset_arguments, *evaluation_arguments, *general_arguments, *training_arguments}
    run |= set(recbole_yaml("dataset", f"{sources.dataset}.yaml"))
    run |= set(shipped("overall.yaml") or {}) | set(
        flatten(shipped("dataset", f"{sources.dataset}.yaml") or {}, "student")
    )
    run -= UNUSED_RECBOLE_KEYS | SEQUENTIAL_KEYS | set(SECTIONS)
    files = sources.teacher_files if sources.method != SCRATCH else []
    if not any(file.endswith(SCORE_FILES) for file in files):
        run -= SCORE_FILE_KEYS
    student = model_keys(sources.student, "--student")
    teacher, teacher_section = set(), set()
    if sources.method != SCRATCH:
        run |= set(method_defaults(sources.method)) - set(SECTIONS)
        teacher_section = set(CHECKPOINT_KEYS)
        # A checkpoint brings all the options of the model in it.
        if not sources.teacher_files:
            teacher = model_keys(sources.teacher, "--teacher")
            teacher_section = {"checkpoint"} | SECTION_KEYS | (teacher - SEQUENTIAL_KEYS)
            if sources.teacher and takes_temperature(backbone_class(sources.teacher, "--teacher")):
                teacher_section |= ROLE_KEYS
    if sources.method == SCRATCH or len(sources.teacher_files) < 2:
        run -= SEVERAL_KEYS
    section = SECTION_KEYS | (student - SEQUENTIAL_KEYS)
    alone = section - ROLE_KEYS  # nobody asks a model that is trained alone for scores
    return {
        None: (run | student | teacher) - ROLE_KEYS,
        "student": section if sources.method != SCRATCH else alone,
        "scratch_student": alone if sources.method != SCRATCH else set(),
        "teacher": teacher_section,
    }


def _elsewhere(key: str) -> str:
    """Which other model or method reads ``key``, as a hint, or an empty string."""
    readers = readers_of(key)
    if not readers:
        return ""
    more = f" and {len(readers) - 3} more" if len(readers) > 3 else ""
    return f" It belongs to {', '.join(readers[:3])}{more}."


def check_keys(sources: Sources) -> None:
    """Refuse any key that no part of the run reads.

    Raises:
        KDError: Names the key, its source and the nearest known keys.
    """
    known = known_keys(sources)
    parts = [sources.method, sources.student, sources.teacher or ""]
    run = ", ".join(p for p in parts if p)
    for layer in sources.layers:
        for key, value in layer.values.items():
            if key in SECTIONS:
                for inner in value:
                    _check_key(inner, f"{key}.{inner}", known[key], layer.origin, run)
            else:
                _check_key(key, key, known[None], layer.origin, run, _sections_with(key, known))


def _sections_with(key: str, known: dict[str | None, set[str]]) -> list[str]:
    """The roles' sections that a key for one role may stand in."""
    roles = ("student", "teacher") if key in ROLE_KEYS else ()
    return [f"{role}.{key}" for role in roles if key in known[role]]


def _check_key(
    key: str, shown: str, known: set[str], origin: str, run: str, roles: Sequence[str] = ()
) -> None:
    if key in known:
        return
    hint = _elsewhere(key) or did_you_mean(key, known)
    if roles:
        hint = f" It holds for one role: set {' or '.join(roles)}."
    elif shown != key and key in SEQUENTIAL_KEYS:
        hint = f" Teacher and student share their sequences: set {key} without a section."
    elif key in SEVERAL_KEYS:
        hint = ' It is for several teachers: --teacher="[a.pth, b.pth]".'
    elif shown.startswith("teacher.") and known == CHECKPOINT_KEYS:
        hint = " The checkpoint brings the teacher's options: give one or the other."
    elif shown in SCORE_FILE_KEYS:
        hint = f" It is for a teacher in a file of scores ({', '.join(SCORE_FILES)})."
    raise KDError(f"{origin}: option '{shown}' is read by no part of this run ({run}).{hint}")
