"""Where the `evaluate` modules of the metrics lie in the installed package."""

from pathlib import Path


_MODULES = Path(__file__).parent / "modules"


def metric_path(name: str) -> str:
    """
    Folder of a metric's `evaluate` module, for `evaluate.load`; it can be pushed as a Space as it is.

    Args:
        name (`str`):
            Name of the metric, for example `"forget_quality"`.

    Returns:
        `str`: The folder.

    Example:

    ```python
    >>> import evaluate
    >>> metric = evaluate.load(metric_path("forget_quality"))
    >>> metric.compute(predictions=[0.1, 0.2, 0.3], retain_truth_ratios=[0.9, 1.0, 1.1])["statistic"]
    1.0
    ```
    """
    names = sorted(path.parent.name for path in _MODULES.glob("*/README.md"))
    if name not in names:
        raise ValueError(f"There is no metric {name!r}; available are {', '.join(map(repr, names))}.")
    return str(_MODULES / name)
