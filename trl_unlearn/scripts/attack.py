"""
Attacks an unlearned model, and shows what comes back, beside the model before unlearning and the retained one.

```bash
trl-unlearn attack --model_name_or_path outputs/simnpo --output_dir outputs/simnpo --benchmark tofu \
    --original_model open-unlearning/tofu_Llama-3.2-1B-Instruct_full \
    --retain_model open-unlearning/tofu_Llama-3.2-1B-Instruct_retain90
trl-unlearn attack --model_name_or_path outputs/simnpo --output_dir outputs/simnpo --benchmark tofu --attacks quantize
```

This is `trl-unlearn evaluate` with all attacks that are not named away. The results land in the same `evaluation.json`,
under `attacks`, and in `report.html`. Killed and started again, it goes on with the part of an attack that it was at.
"""

from dataclasses import dataclass, field

from trl_unlearn.scripts.evaluate import EvaluateScriptArguments, evaluate
from trl_unlearn.scripts.help import shows_help


# Where its options are written down, for its help
SOURCES = {
    "Model and output": [
        ("trl_unlearn.scripts.attack", "AttackScriptArguments"),
        ("trl_unlearn.scripts.evaluate", "EvaluateScriptArguments"),
        ("trl_unlearn.attacks.arguments", "AttackArguments"),
        ("trl_unlearn.evaluation.arguments", "EvaluationArguments"),
    ]
}


@dataclass
class AttackScriptArguments(EvaluateScriptArguments):
    r"""
    Arguments of the attack command: those of [`~scripts.evaluate.EvaluateScriptArguments`].

    > [!NOTE]
    > These parameters have default values different from [`~scripts.evaluate.EvaluateScriptArguments`]:
    > - `attacks`: Defaults to all instead of none.
    """

    attacks: list[str] = field(
        default_factory=lambda: ["relearn", "quantize", "sample", "paraphrase", "adapter"],
        metadata={"help": "Attacks: relearn, quantize, sample, paraphrase, adapter."},
    )


def main() -> None:
    if shows_help("attack", __doc__.split("\n\n")[0].strip(), SOURCES):
        return
    from trl_unlearn.scripts.parsing import RecipeParser

    evaluate(*RecipeParser(AttackScriptArguments).parse())


if __name__ == "__main__":
    main()
