"""Wrong options: one sentence, with the nearest right one, before anything is loaded."""

import pytest

from trl_unlearn.evaluation.arguments import EvaluationArguments
from trl_unlearn.scripts.evaluate import EvaluateScriptArguments
from trl_unlearn.scripts.parsing import RecipeParser


REQUIRED = ["--model_name_or_path", "model", "--output_dir", "out"]


@pytest.fixture
def parse(tmp_path):
    """Parses flags, and a YAML file if its text is given."""

    def parse(*flags, config=None, classes=EvaluateScriptArguments):
        if config is not None:
            (tmp_path / "config.yaml").write_text(config)
            flags = [f"--config={tmp_path / 'config.yaml'}", *flags]
        (arguments,) = RecipeParser(classes).parse(flags)
        return arguments

    return parse


def test_flags_win_over_the_file(parse):
    arguments = parse(*REQUIRED, "--benchmark", "tofu", config="eval_max_new_tokens: 7\neval_benchmark: world\n")
    assert (arguments.eval_benchmark, arguments.eval_max_new_tokens) == ("tofu", 7)


def test_a_flag_unsets_what_the_file_sets(parse):
    config = "eval_benchmark: tofu\nretain_logs: auto\neval_compat: tofu\n"
    arguments = parse(*REQUIRED, "--retain_logs", "none", "--eval_compat", "none", config=config)
    assert arguments.retain_logs is arguments.eval_compat is None


def test_one_value_for_a_list(parse):
    arguments = parse(*REQUIRED, config="eval_benchmark: tofu\neval_splits: forget05\n")
    assert arguments.eval_splits == ["forget05"]


@pytest.mark.parametrize(
    ("flags", "config", "message"),
    [
        ([], "eval_benchmrk: tofu", "`eval_benchmrk` in the file of `--config` is no option of this command. Did you mean `eval_benchmark`?"),
        ([], "quantum: 1", "`quantum` in the file of `--config` is no option of this command.\n"),
        ([], "eval_benchmark: tofuu", "`eval_benchmark` in the file of `--config` is 'tofuu'; expected one of tofu, muse"),
        ([], "eval_max_new_tokens: many", "argument --eval_max_new_tokens"),
        ([], "a: [", "the file of `--config` is not YAML"),
        ([], "- a\n- b", "must contain a YAML mapping"),
        (["--eval_bnchmark", "tofu"], None, "`--eval_bnchmark` is no option of this command. Did you mean `--eval_benchmark`?"),
        (["--benchmark", "tofuu"], None, "invalid choice: 'tofuu'"),
        (["--eval_bench", "tofu"], None, "`--eval_bench` is no option of this command."),
        (["--config"], None, "`--config` takes a YAML file."),
        (["--config", "nowhere.yaml"], None, "nowhere.yaml"),
        ([], None, "Say what to evaluate on"),
    ],
)  # fmt: skip
def test_wrong_options(flags, config, message, parse, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(*REQUIRED, *flags, config=config)
    assert stop.value.code == 2
    output = capsys.readouterr().err
    assert message in output
    assert "Traceback" not in output
    assert len(output.splitlines()) <= 5


def test_what_is_missing_is_named(parse, capsys):
    with pytest.raises(SystemExit):
        parse("--benchmark", "tofu")
    assert "--model_name_or_path" in capsys.readouterr().err


def test_defaults_of_one_run_do_not_stay(parse):
    assert parse("--benchmark", "tofu", classes=EvaluationArguments).eval_splits == []
