"""What a search varies: ranges of options, from a method's file, a YAML file or a ``.hyper`` file.

A range is a line ``key: {low: 1.0e-3, high: 1.0e+3, log: true}``, with ``step`` instead of ``log``
for a grid and whole bounds for whole numbers, or ``key: {choices: [rank, score]}``. RecBole's
``.hyper`` files have a line ``key type value`` each, of the types in :data:`HYPER_TYPES`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from recbole_kd.errors import KDError
from recbole_kd.options import parse_value, read_yaml

HYPER_TYPES = {
    "choice": "choice [a,b]",
    "uniform": "uniform low,high",
    "quniform": "quniform low,high,step",
    "loguniform": "loguniform log(low),log(high)",
}
"""Types of RecBole's files with what follows them; ``loguniform`` has natural logarithms."""

YAML_ENDINGS = (".yaml", ".yml")
"""Endings of files of ranges; any other file is RecBole's kind."""

TOLERANCE = 1e-9
"""Share of a step by which a value may miss the grid."""


@dataclass(frozen=True)
class Numbers:
    """Numbers between two bounds, both included; whole numbers if both bounds are.

    Attributes:
        low: Least value.
        high: Greatest value.
        step: Distance on a grid from ``low``, or ``None``.
        log: Whether all magnitudes are equally likely.
    """

    low: float
    high: float
    step: float | None = None
    log: bool = False

    @property
    def whole(self) -> bool:
        """Whether the values are whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    def holds(self, value: Any) -> bool:
        """Whether a value is one of these."""
        if not _is_number(value) or (self.whole and not isinstance(value, int)):
            return False
        if not self.low <= value <= self.high:
            return False
        if self.step is None:
            return True
        places = (value - self.low) / self.step
        return abs(places - round(places)) < TOLERANCE * max(1, places)

    @property
    def ends(self) -> tuple[Any, ...]:
        """The bounds."""
        return self.low, self.high

    def widened(self, value: Any) -> Numbers:
        """The same with a value in it, as far as it is of its kind."""
        fits = _is_number(value) and (value > 0 or not self.log)
        if not fits or self.holds(value) or (self.whole and not isinstance(value, int)):
            return self
        return replace(self, low=min(self.low, value), high=max(self.high, value), step=None)

    def __str__(self) -> str:
        more = " (log)" if self.log else f" in steps of {self.step:g}" if self.step else ""
        return f"{self.low:g} to {self.high:g}{more}"


@dataclass(frozen=True)
class Choices:
    """Some values.

    Attributes:
        choices: The values, as plain data.
    """

    choices: tuple[Any, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        """All choices, for none lies between others."""
        return self.choices

    @property
    def labels(self) -> list[Any]:
        """A number, word or ``None`` for each value; a list becomes text."""
        plain = (bool, int, float, str, type(None))
        return [v if isinstance(v, plain) else json.dumps(v) for v in self.choices]

    def holds(self, value: Any) -> bool:
        """Whether a value is one of these."""
        return any(_same(value, one) for one in self.choices)

    def widened(self, value: Any) -> Choices:
        """The same with a value in it."""
        return self if self.holds(value) else Choices((*self.choices, value))

    def __str__(self) -> str:
        return ", ".join(map(str, self.choices))


Range = Numbers | Choices


def read_ranges(path: str | Path) -> dict[str, Range]:
    """The ranges in a file: YAML, or RecBole's ``.hyper`` format.

    Args:
        path: The file.

    Raises:
        KDError: It cannot be read, or a range is none; names file, line or key, what was found and
            what is allowed.
    """
    if str(path).endswith(YAML_ENDINGS):
        return to_ranges(read_yaml(path), f"--params_file={path}")
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise KDError(f"--params_file={path}: {reason}") from error
    ranges: dict[str, Range] = {}
    for number, line in enumerate(lines, 1):
        words, where = line.split(), f"--params_file={path} line {number}"
        if not words or words[0].startswith("#"):
            continue
        if len(words) < 3 or words[1] not in HYPER_TYPES:
            allowed = "; ".join(f"key {form}" for form in HYPER_TYPES.values())
            raise KDError(f"{where}: found '{line.strip()}'; allowed are {allowed}")
        if words[0] in ranges:
            raise KDError(f"{where}: found '{words[0]}' twice; allowed is once")
        ranges[words[0]] = _hyper(words[1], " ".join(words[2:]), where)
    return _filled(ranges, f"--params_file={path}")


def to_ranges(values: Mapping[str, Any], origin: str) -> dict[str, Range]:
    """The ranges that a mapping describes.

    Args:
        values: By option, ``low`` and ``high`` (``step``, ``log``), or ``choices``.
        origin: Where it came from, for the message.

    Raises:
        KDError: A range is none.
    """
    ranges = {key: _range(value, f"{origin}: {key}") for key, value in values.items()}
    return _filled(ranges, origin)


def described(ranges: Mapping[str, Range]) -> dict[str, Any]:
    """Ranges as plain data, by which two searches are told apart."""
    plain = {key: asdict(value) for key, value in sorted(ranges.items())}
    return json.loads(json.dumps(plain))


def _filled(ranges: dict[str, Range], origin: str) -> dict[str, Range]:
    if not ranges:
        raise KDError(f"{origin}: found no range; needed is one or more")
    return ranges


def _hyper(kind: str, text: str, where: str) -> Range:
    """What one line of a ``.hyper`` file means, in hyperopt's terms."""
    if kind == "choice":
        values = parse_value(text)
        if not isinstance(values, list):
            raise KDError(f"{where}: found '{text}'; allowed is a list, {HYPER_TYPES[kind]}")
        return _choices([parse_value(v) for v in values], where)
    bounds = [parse_value(part.strip()) for part in text.split(",")]
    wanted = 3 if kind == "quniform" else 2
    if len(bounds) != wanted or not all(map(_is_number, bounds)):
        raise KDError(f"{where}: found '{text}'; allowed are {wanted} numbers, {HYPER_TYPES[kind]}")
    if kind == "loguniform":
        if max(bounds) > math.log(1e300):
            raise KDError(f"{where}: found '{text}'; allowed are logarithms, {HYPER_TYPES[kind]}")
        return _numbers(math.exp(bounds[0]), math.exp(bounds[1]), None, True, where)
    if kind == "uniform":
        return _numbers(float(bounds[0]), float(bounds[1]), None, False, where)
    low, high, step = bounds
    if step <= 0:
        raise KDError(f"{where}: found step {step}; allowed are numbers above 0")
    # hyperopt rounds to multiples of the step, whatever the lower bound is.
    return _numbers(_multiple(low, step), _multiple(high, step), step, False, where)


def _multiple(value: float, step: float) -> float:
    """The multiple of a step nearest to a value, without binary dust."""
    count = round(value / step)
    return count * step if isinstance(step, int) else float(f"{count * step:.12g}")


def _range(value: Any, where: str) -> Range:
    keys = set(value) if isinstance(value, Mapping) else set()
    if keys == {"choices"} and isinstance(value["choices"], list):
        return _choices([None if v == "None" else v for v in value["choices"]], where)
    if not {"low", "high"} <= keys <= {"low", "high", "step", "log"}:
        raise KDError(
            f"{where}: found {value}; allowed are {{low: 1, high: 9}} with step or log, and "
            "{choices: [a, b]}"
        )
    low, high, step, log = (value.get(key) for key in ("low", "high", "step", "log"))
    if not _is_number(low) or not _is_number(high) or log not in (None, True, False):
        raise KDError(f"{where}: found {value}; allowed are numbers, and True or False for log")
    if step is not None and (not _is_number(step) or step <= 0):
        raise KDError(f"{where}: found step {step}; allowed are numbers above 0")
    return _numbers(low, high, step, bool(log), where)


def _numbers(low: float, high: float, step: float | None, log: bool, where: str) -> Numbers:
    if low >= high:
        raise KDError(f"{where}: found low {low:g} and high {high:g}; allowed is low below high")
    if log and (low <= 0 or step is not None):
        raise KDError(f"{where}: found log with low {low:g}, step {step}; allowed is low above 0")
    if isinstance(low, int) and isinstance(high, int) and not isinstance(step, int | None):
        low = float(low)
    if not (isinstance(low, int) and isinstance(high, int)):
        low, high = float(low), float(high)
    if step is not None:
        if step > high - low:
            raise KDError(f"{where}: found step {step:g}; allowed are steps up to {high - low:g}")
        places = math.floor((high - low) / step + TOLERANCE)  # no value lies beyond the last
        high = low + places * step if isinstance(low, int) else float(f"{low + places * step:.12g}")
    return Numbers(low, high, step, log)


def _choices(values: Iterable[Any], where: str) -> Choices:
    values = tuple(values)
    if not values or any(_same(v, w) for n, v in enumerate(values) for w in values[:n]):
        raise KDError(f"{where}: found choices {list(values)}; allowed are values, each once")
    return Choices(values)


def _is_number(value: Any) -> bool:
    right = isinstance(value, int | float) and not isinstance(value, bool)
    return right and math.isfinite(value)


def _same(one: Any, other: Any) -> bool:
    """Equal, and not a number where the other is True or False."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)
