"""Which forget rows are forgotten during a training and which resist: the probability of each at each evaluation."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean


FORGETTING_FILE = "forgetting.json"


@dataclass
class Forgetting:
    """
    The forget probability of every row over a training. Numbers only, no texts.

    Args:
        retained (`list[float]`, *optional*):
            The retained model's forget probability of each row.
        forget_floor (`float`, *optional*):
            Probability at or below which the training counts a row as forgotten.
        steps (`list[int]`, *optional*, defaults to none):
            Steps that were evaluated.
        probability (`list[list[float]]`, *optional*, defaults to none):
            For each row, in the order of the data, its probability at each of the steps: the geometric mean over the
            tokens of the answer, exp(-loss).

    Example:

    ```python
    >>> forgetting = Forgetting(forget_floor=0.4)
    >>> forgetting.add(0, [0.9, 0.8])
    >>> forgetting.add(10, [0.3, 0.7])
    >>> forgetting.resisting([0.3, 0.7])
    [1]
    ```
    """

    retained: list[float] | None = None
    forget_floor: float | None = None
    steps: list[int] = field(default_factory=list)
    probability: list[list[float]] = field(default_factory=list)

    @classmethod
    def read(cls, path: str | Path) -> "Forgetting":
        """Reads `forgetting.json`, which has the arguments above."""
        return cls(**json.loads(Path(path).read_text(encoding="utf-8")))

    def go_on_from(self, path: str | Path, step: int) -> None:
        """Takes over what was written up to this step, and drops what came after it."""
        earlier = Forgetting.read(path)
        self.steps = [evaluated for evaluated in earlier.steps if evaluated <= step]
        self.probability = [values[: len(self.steps)] for values in earlier.probability]

    def add(self, step: int, probability: list[float]) -> None:
        """Adds an evaluation, with the probability of each row. Of other rows than before, it is the first."""
        if len(self.probability) != len(probability):
            self.steps, self.probability = [], [[] for _ in probability]
        if self.retained is not None and len(self.retained) != len(probability):
            self.retained = None  # from a log of other rows
        self.steps.append(step)
        for values, value in zip(self.probability, probability, strict=True):
            values.append(value)

    @property
    def threshold(self) -> float | None:
        """At or below it a row counts as forgotten: `forget_floor`, or the retained model's mean; `None` without both."""
        if self.forget_floor is not None:
            return self.forget_floor
        return fmean(self.retained) if self.retained else None

    @property
    def threshold_source(self) -> str:
        """What the threshold is."""
        return "forget_floor" if self.forget_floor is not None else "the retained model's mean"

    def resisting(self, probability: list[float]) -> list[int]:
        """The rows above the threshold under a model that gives them these probabilities, the most probable first."""
        order = sorted(range(len(probability)), key=lambda row: -probability[row])
        return [row for row in order if probability[row] > self.threshold]
