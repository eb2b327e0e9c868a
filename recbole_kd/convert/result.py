"""What a conversion is told about its format, and what it reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class About:
    """What the README tells besides numbers.

    Attributes:
        source: The raw format, one phrase.
        rule: How the split was made, one sentence.
        notes: What the user should know about the raw data, one sentence each.
        options: The format's options as they were used, for the command line that repeats it.
        eval_args: The split RecBole is to make of an unsplit set, as the inside of a YAML mapping.
    """

    source: str
    rule: str
    notes: tuple[str, ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)
    eval_args: str = ""


@dataclass(frozen=True)
class ConversionResult:
    """What a conversion wrote.

    Attributes:
        name: Name of the data set, which is the name of its folder.
        out: The folder.
        files: The files written, in the order of the README.
        n_users: Users with at least one interaction.
        n_items: Items with at least one interaction.
        interactions: Number of interactions per part; the one key of an unsplit set is ``all``.
        median_per_user: Median number of interactions per user, over all parts.
        rule: How the split was made, one sentence.
        command: The command line that makes the same folder.
        notes: What the user should know about the raw data, one sentence each.
    """

    name: str
    out: Path
    files: tuple[Path, ...]
    n_users: int
    n_items: int
    interactions: dict[str, int]
    median_per_user: float
    rule: str
    command: str
    notes: tuple[str, ...]

    @property
    def n_interactions(self) -> int:
        """Number of interactions in all parts together."""
        return sum(self.interactions.values())

    @property
    def density(self) -> float:
        """Share of the user-item matrix that is filled, from 0 to 1."""
        return self.n_interactions / (self.n_users * self.n_items)

    @property
    def mean_per_user(self) -> float:
        """Mean number of interactions per user, over all parts."""
        return self.n_interactions / self.n_users

    @property
    def config_file(self) -> Path:
        """The YAML file to pass to ``--config_files``."""
        return self.out / f"{self.name}.yaml"

    def summary(self) -> str:
        """Describe the result in a few lines for a terminal."""
        parts = ", ".join(f"{n} {part}" for part, n in self.interactions.items())
        lines = [
            f"{self.name}: {self.n_users} users, {self.n_items} items, interactions: {parts}",
            f"split: {self.rule}",
            *(f"note: {note}" for note in self.notes),
            f"wrote {len(self.files)} files to {self.out}",
            f"use: --dataset={self.name} --config_files={self.config_file}",
        ]
        return "\n".join(lines)
