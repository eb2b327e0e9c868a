"""A model's best items of every user as a score file, for another run's teacher or another tool."""

from __future__ import annotations

import base64
import itertools
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import torch

from recbole_kd import checkpoint, deploy
from recbole_kd.data import Tokens, pair_hashes
from recbole_kd.errors import KDError
from recbole_kd.options import SCORE_FILES, is_positive
from recbole_kd.score_file import COLUMNS, MOST_HASHES, TRAINED_ON, parquet
from recbole_kd.teacher import UNKNOWN_SCORE, FrozenTeacher

DEFAULT_TOP_K = 500

Array = np.ndarray[Any, Any]
Rows = tuple[Array, Array, Array]
"""User ids, item ids and scores of some rows."""


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        path: The file.
        users: Users in it.
        rows: Rows in it.
        left_out: Users of the model without train interactions.
    """

    path: Path
    users: int
    rows: int
    left_out: int

    def summary(self) -> str:
        """One line for the command line."""
        text = f"written {self.path}: {self.rows} rows, best items of {self.users} users"
        if self.left_out:
            text += f"; {self.left_out} users without train interactions are left out"
        return text


def write_scores(
    model: str | Path,
    target: str | Path,
    top_k: int | None = None,
    mask_train: bool = False,
    memory_budget_gb: float = 0.1,
) -> Written:
    """Write the best items of every user with train interactions, in chunks.

    A user is encoded from the model's own train history. The file appears when it is complete.

    Args:
        model: A checkpoint of ours or of RecBole, or a run's folder.
        target: The ``.parquet``, ``.csv`` or ``.npz`` file to write; one that is there is replaced.
        top_k: Items a user; a user with fewer that are not left out has those. ``None``: 500, or
            all items of a smaller catalogue.
        mask_train: Whether train items are left out.
        memory_budget_gb: Working memory of a chunk, in GiB.

    Raises:
        KDError: An option is out of range, or a file cannot be read or written.
    """
    target = Path(target)
    _check(target, top_k, mask_train, memory_budget_gb)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    loaded = deploy.load_model(model, device)
    n_items = len(loaded.tokens.items) - 1
    if top_k is None:
        top_k = min(DEFAULT_TOP_K, n_items)
    if top_k > n_items:
        raise KDError(f"--top_k={top_k}: the model knows {n_items} items; allowed are 1 to that")
    counts = loaded.history.counts
    users = torch.arange(len(counts)).masked_fill(counts == 0, -1)
    items = torch.arange(n_items + 1)
    teacher = FrozenTeacher(
        loaded.scorer, users, items, loaded.history, memory_budget_gb, keeps_scores=False
    )
    active = int(teacher.knows_user.sum())
    rows = 0

    def count(chunks: Iterator[Rows]) -> Iterator[Rows]:
        nonlocal rows
        for chunk in chunks:
            rows += len(chunk[0])
            yield chunk

    chunks = count(_rows(teacher, top_k, mask_train))
    first = next(chunks)  # what the model refuses is no fault of the file's
    write = WRITERS[target.suffix]
    seen = loaded.history.pairs()
    hashes = np.unique(pair_hashes(seen[0].numpy(), seen[1].numpy(), loaded.tokens))
    trained_on = hashes[:MOST_HASHES]
    checkpoint.write_bytes_atomically(
        target,
        lambda file: write(file, itertools.chain([first], chunks), loaded.tokens, trained_on),
    )
    return Written(target, active, rows, len(counts) - 1 - active)


def _check(target: Path, top_k: Any, mask_train: Any, memory_budget_gb: Any) -> None:
    """Refuse options out of range before anything is loaded."""
    if target.suffix not in WRITERS:
        raise KDError(f"{target}: allowed endings are {', '.join(WRITERS)}")
    if target.is_dir():
        raise KDError(f"{target}: is a folder; allowed is a file")
    if target.suffix == ".parquet":
        parquet(target)
    if top_k is not None and (type(top_k) is not int or top_k < 1):
        raise KDError(f"--top_k={top_k}: allowed are whole numbers above 0")
    if type(mask_train) is not bool:
        raise KDError(f"--mask_train={mask_train}: allowed are True, False")
    if not is_positive(memory_budget_gb):
        raise KDError(f"--memory_budget_gb={memory_budget_gb}: allowed are numbers above 0")


def _rows(teacher: FrozenTeacher, top_k: int, mask_train: bool) -> Iterator[Rows]:
    for users, items, scores in teacher.ranked(top_k, mask_train):
        left = ~(scores <= UNKNOWN_SCORE)  # what is no number stays, to be refused
        owners = users.unsqueeze(1).expand_as(items)
        owners, items, scores = (t[left].cpu() for t in (owners, items, scores))
        if not bool(scores.isfinite().all()):
            raise KDError("the model has scores that are not finite; allowed are finite numbers")
        yield owners.numpy(), items.numpy(), scores.numpy()


def _write_parquet(
    file: IO[bytes], chunks: Iterator[Rows], tokens: Tokens, trained_on: Array
) -> None:
    arrow = parquet("")
    names = arrow.array(tokens.users), arrow.array(tokens.items)
    kinds = (arrow.string(), arrow.string(), arrow.float32())
    note = {TRAINED_ON: base64.b64encode(trained_on.astype("<u8").tobytes())}
    schema = arrow.schema(zip(COLUMNS, kinds, strict=True), metadata=note)
    with arrow.parquet.ParquetWriter(file, schema) as out:
        for users, items, scores in chunks:
            columns = [n.take(arrow.array(i)) for n, i in zip(names, (users, items), strict=True)]
            columns.append(arrow.array(scores))
            out.write_table(arrow.table(columns, schema=out.schema))


def _write_csv(file: IO[bytes], chunks: Iterator[Rows], tokens: Tokens, _: Array) -> None:
    """A table has no room for a note on what the model was trained on."""
    names = np.array(tokens.users, dtype=object), np.array(tokens.items, dtype=object)
    file.write((",".join(COLUMNS) + "\n").encode())
    for users, items, scores in chunks:
        table = pd.DataFrame(
            dict(zip(COLUMNS, (names[0][users], names[1][items], scores), strict=True))
        )
        # Nine digits tell all numbers of single precision apart.
        table.to_csv(file, mode="wb", header=False, index=False, float_format="%.9g")


def _write_npz(file: IO[bytes], chunks: Iterator[Rows], tokens: Tokens, trained_on: Array) -> None:
    """An array's length stands before it: ids of all rows are kept until they are counted."""
    parts = [(u.astype(np.int32), i.astype(np.int32), s) for u, i, s in chunks]
    columns = zip(*parts, strict=True)
    names = np.array(tokens.users), np.array(tokens.items), None
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, column, tokens_of in zip(COLUMNS, columns, names, strict=True):
            arrays = column if tokens_of is None else (tokens_of[part] for part in column)
            kind = np.dtype(np.float32) if tokens_of is None else tokens_of.dtype
            header = {
                "descr": np.lib.format.dtype_to_descr(kind),
                "fortran_order": False,
                "shape": (sum(map(len, column)),),
            }
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for array in arrays:
                    member.write(array.tobytes())
        with archive.open(f"{TRAINED_ON}.npy", "w") as member:
            np.lib.format.write_array(member, trained_on)


WRITERS: dict[str, Callable[[IO[bytes], Iterator[Rows], Tokens, Array], None]] = dict(
    zip(SCORE_FILES, (_write_parquet, _write_csv, _write_npz), strict=True)
)
