"""The options: defaults that are the papers', bad values that are refused, and a command line that knows them all."""

import math
import re
from dataclasses import fields

import pytest
from trl import SFTConfig, TrlParser

from trl_unlearn import AltPOConfig, NPOConfig, SimNPOConfig, UnlearningConfig
from trl_unlearn.data.encoding import DEFAULT_QUESTION_ANSWER_TEMPLATE


CONFIGS = [UnlearningConfig, NPOConfig, SimNPOConfig, AltPOConfig]

# The papers' TOFU recipes: effective batch, epochs, optimizer; β and weights of forget05
SHARED = {
    "learning_rate": 1e-5,
    "num_train_epochs": 10,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 4,
    "weight_decay": 0.01,
    "max_grad_norm": 0.0,
    "warmup_epochs": 1.0,
    "beta": 0.1,
    "forget_weight": 1.0,
    "retain_weight": 1.0,
    "retain_loss_type": "nll",
    "retain_normalization": "micro_batch",
    "pairing": "fresh",
    "precompute_ref_log_probs": True,
    "precompute_ref_batch_size": None,
    "forget_floor": None,
    "forget_sharpness": 0.0,
    "cache_ref_hidden_states": False,
    "disable_dropout": True,
    "question_answer_template": DEFAULT_QUESTION_ANSWER_TEMPLATE,
    "max_length": 1024,
    "lr_scheduler_type": "linear",
    "bf16": False,
    "fp16": False,
    "packing": False,
}
DEFAULTS = {
    UnlearningConfig: SHARED,
    NPOConfig: SHARED | {"forget_loss_type": "npo"},
    SimNPOConfig: SHARED | {"beta": 2.5, "gamma": 0.0, "forget_weight": 0.1375},
    AltPOConfig: SHARED
    | {
        "learning_rate": 5e-5,
        "num_train_epochs": 2,
        "per_device_train_batch_size": 7,
        "gradient_accumulation_steps": 5,
    },
}


@pytest.fixture(params=CONFIGS, ids=lambda config_class: config_class.__name__)
def config_class(request):
    return request.param


def own_fields(config_class):
    return [field for field in fields(config_class) if field.name in config_class.__annotations__]


# ---------------------------------------------------------------- defaults


def test_defaults_are_the_papers(config_class, tmp_path):
    """They also construct on this machine, which has no bf16: a first run must not fail on TRL's default."""
    config = config_class(str(tmp_path))
    assert {name: getattr(config, name) for name in DEFAULTS[config_class]} == DEFAULTS[config_class]


def test_bf16_stays_a_choice(tmp_path):
    assert NPOConfig(str(tmp_path), use_cpu=True, bf16=True).bf16 is True
    assert NPOConfig(str(tmp_path), use_cpu=True).bf16 is False
    assert NPOConfig(str(tmp_path), bf16=False).bf16 is False


def test_every_default_that_differs_from_trl_is_documented(config_class, tmp_path):
    inherited = config_class.__mro__[1]
    config, other = config_class(str(tmp_path)), inherited(str(tmp_path), bf16=False)
    for field in fields(inherited):
        if field.init and getattr(config, field.name) != getattr(other, field.name):
            assert f"`{field.name}`" in config_class.__doc__ or f" {field.name} (" in config_class.__doc__, field.name
    assert inherited is (SFTConfig if config_class is UnlearningConfig else UnlearningConfig)


def test_every_field_has_a_help_and_is_documented(config_class):
    for field in own_fields(config_class):
        help_text = field.metadata.get("help", "")
        assert len(help_text) > 20, field.name
        assert help_text.rstrip().endswith("."), field.name
        documented = f" {field.name} (`" in config_class.__doc__ or f"`{field.name}`" in config_class.__doc__
        assert documented, field.name


def test_documented_defaults_are_the_defaults(config_class):
    for name, default in re.findall(r"^ +(\w+) \(.*defaults to `(.+)`\):$", config_class.__doc__, re.MULTILINE):
        (value,) = (field.default for field in fields(config_class) if field.name == name)
        # the docstrings are raw: a line break in a default is written out in them
        assert default == (f'"{value}"'.replace("\n", "\\n") if isinstance(value, str) else repr(value)), name


# ---------------------------------------------------------------- what is refused

REFUSED = [
    ({"beta": 0.0}, "`beta` must be positive, got 0.0"),
    ({"beta": -0.1}, "`beta` must be positive, got -0.1"),
    ({"beta": math.nan}, "`beta` must be positive, got nan"),
    ({"forget_weight": -1.0}, "`forget_weight` must not be negative, got -1.0"),
    ({"forget_sharpness": -0.01}, "`forget_sharpness` must not be negative, got -0.01"),
    ({"retain_weight": -0.5}, "`retain_weight` must not be negative, got -0.5"),
    ({"retain_weight": math.nan}, "`retain_weight` must not be negative, got nan"),
    ({"forget_weight": 0.0, "retain_weight": 0.0}, "are both 0, so there is nothing to train"),
    ({"retain_loss_type": "mse"}, "`retain_loss_type` must be one of .*'kl_all_positions'.*got 'mse'"),
    ({"retain_normalization": "batch"}, "`retain_normalization` must be one of .*'optimizer_batch'.*got 'batch'"),
    ({"pairing": "random"}, "`pairing` must be one of .*'fixed'.*got 'random'"),
    ({"forget_floor": 1.0}, "`forget_floor` is a probability between 0 and 1, got 1.0"),
    ({"precompute_ref_batch_size": 0}, "`precompute_ref_batch_size` must be positive, got 0"),
    ({"cache_ref_hidden_states": True}, "is for `retain_loss_type='kl'` with a `retain_weight`, got 'nll' and 1.0"),
    (
        {"cache_ref_hidden_states": True, "retain_loss_type": "kl_all_positions"},
        "is for `retain_loss_type='kl'` with a `retain_weight`, got 'kl_all_positions' and 1.0",
    ),
    ({"warmup_epochs": -1.0}, "`warmup_epochs` must not be negative, got -1.0"),
    ({"max_length": 1}, "`max_length` must be at least 2 .*got 1"),
    ({"max_length": 0}, "`max_length` must be at least 2 .*got 0"),
    (
        {"question_answer_template": "{question}"},
        r"must contain \{question\} once and then \{answer\} once, got '\{question\}'",
    ),
    ({"question_answer_template": "A: {answer}"}, r"must contain \{question\} once"),
    (
        {"question_answer_template": "{question} {answer} {answer}"},
        r"must contain \{question\} once and then \{answer\} once",
    ),
    ({"retain_loss_type": "kl_all_positions", "padding_free": True}, "averages over padding.*retain_loss_type='kl'"),
]
# Inherited options that would change which tokens are scored, or do nothing
UNSUPPORTED = [
    {"packing": True},
    {"eval_packing": True},
    {"dataset_text_field": "body"},
    # the name of the option in transformers 5, and before
    {"train_sampling_strategy": "group_by_length"}
    if hasattr(NPOConfig, "train_sampling_strategy")
    else {"group_by_length": True},
    {"shuffle_dataset": True},
    {"completion_only_loss": True},
    {"completion_only_loss": False},
    {"assistant_only_loss": True},
    {"loss_type": "dft"},
    {"truncation_mode": "keep_end"},
    {"label_smoothing_factor": 0.1},
    {"dataset_kwargs": {"skip_prepare_dataset": True}},
]


@pytest.mark.parametrize("options, problem", REFUSED, ids=[str(options) for options, _ in REFUSED])
def test_bad_values_are_refused(options, problem, config_class, tmp_path):
    with pytest.raises(ValueError, match=problem):
        config_class(str(tmp_path), **options)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("options", UNSUPPORTED, ids=str)
def test_options_that_would_score_other_tokens_are_refused(options, config_class, tmp_path):
    (name,) = options
    with pytest.raises(ValueError, match=f"`{name}={re.escape(repr(options[name]))}` is not supported"):
        config_class(str(tmp_path), **options)


def test_a_template_with_the_question_after_the_answer_is_refused(tmp_path):
    """The text after `{answer}` belongs to the completion: the question would be learnt, or left as `{question}`."""
    with pytest.raises(ValueError, match=r"`question_answer_template`"):
        NPOConfig(str(tmp_path), question_answer_template="{answer} answers {question}")


def test_an_unknown_forget_loss_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`forget_loss_type` must be 'npo' or 'grad_ascent', got 'kto'"):
        NPOConfig(str(tmp_path), forget_loss_type="kto")


@pytest.mark.parametrize(
    "options",
    [
        {"retain_weight": 0.0},
        {"forget_weight": 0.0},
        {"retain_loss_type": "kl", "padding_free": True},
        {"retain_loss_type": "kl_all_positions"},
        {"retain_normalization": "optimizer_batch"},
        {"pairing": "fixed"},
        {"max_length": None},
        {"max_length": 2},
        {"eval_packing": False},
        {"question_answer_template": "[INST] {question} [/INST]{answer}###"},
        {"gradient_accumulation_steps": 1, "report_to": "none", "save_strategy": "no"},
    ],
    ids=str,
)
def test_good_values_are_taken(options, config_class, tmp_path):
    config = config_class(str(tmp_path), **options)
    for name, value in options.items():
        if name != "report_to":
            assert getattr(config, name) == value


# ---------------------------------------------------------------- warm-up


@pytest.mark.parametrize(
    "config_class, options, num_steps, num_warmup_steps",
    [
        (NPOConfig, {}, 100, 10),  # one of ten epochs
        (NPOConfig, {}, 63, 7),  # rounded up
        (NPOConfig, {}, 1, 1),
        (SimNPOConfig, {}, 100, 10),
        (AltPOConfig, {}, 100, 50),  # one of two epochs
        (AltPOConfig, {"num_train_epochs": 10}, 100, 10),
        (NPOConfig, {"num_train_epochs": 5}, 100, 20),
        (NPOConfig, {"num_train_epochs": 1}, 100, 50),  # never more than half of the training
        (NPOConfig, {"warmup_epochs": 0.0}, 100, 0),
        (NPOConfig, {"warmup_epochs": 2.5}, 100, 25),
        (NPOConfig, {"warmup_epochs": 20}, 100, 50),
        (NPOConfig, {"warmup_steps": 7}, 100, 7),  # given steps win
        (AltPOConfig, {"warmup_steps": 3}, 100, 3),
        (NPOConfig, {"warmup_steps": 7, "warmup_epochs": 0.0}, 100, 7),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else str(value),
)
def test_the_warm_up_is_an_epoch(config_class, options, num_steps, num_warmup_steps, tmp_path):
    assert config_class(str(tmp_path), **options).get_warmup_steps(num_steps) == num_warmup_steps


# ---------------------------------------------------------------- command line


def test_options_parse_from_the_command_line(tmp_path):
    given = {
        "beta": ("0.5", 0.5),
        "forget_weight": ("2", 2.0),
        "retain_loss_type": ("kl", "kl"),
        "forget_loss_type": ("grad_ascent", "grad_ascent"),
        "pairing": ("fixed", "fixed"),
        "max_length": ("64", 64),
        "precompute_ref_log_probs": ("false", False),
        "precompute_ref_batch_size": ("3", 3),
        "cache_ref_hidden_states": ("true", True),
        "warmup_epochs": ("0.5", 0.5),
        "question_answer_template": ("{question} {answer}", "{question} {answer}"),
    }
    arguments = [part for name, (text, _) in given.items() for part in (f"--{name}", text)]
    (config,) = TrlParser((NPOConfig,)).parse_args_and_config(["--output_dir", str(tmp_path), *arguments])
    assert type(config) is NPOConfig
    assert {name: getattr(config, name) for name in given} == {name: value for name, (_, value) in given.items()}


def test_the_command_line_has_the_same_defaults(config_class, tmp_path):
    (config,) = TrlParser((config_class,)).parse_args_and_config(["--output_dir", str(tmp_path)])
    assert {name: getattr(config, name) for name in DEFAULTS[config_class]} == DEFAULTS[config_class]


def test_a_config_file_is_read_and_the_command_line_goes_before_it(config_class, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("beta: 3.5\nretain_weight: 2\nretain_loss_type: kl\nlearning_rate: 5.0e-5\n")
    arguments = ["--config", str(path), "--output_dir", str(tmp_path), "--retain_weight", "7"]
    (config,) = TrlParser((config_class,)).parse_args_and_config(arguments)
    assert (config.beta, config.retain_weight, config.retain_loss_type) == (3.5, 7.0, "kl")
    assert config.learning_rate == 5e-5


def test_help_shows_every_field(config_class):
    text = "".join(TrlParser((config_class,)).format_help().split())  # lines are broken at hyphens too
    for field in own_fields(config_class):
        assert f"--{field.name}" in text
        assert "".join(field.metadata["help"].split()) in text, field.name


@pytest.mark.parametrize("name", ["pairing", "retain_loss_type", "retain_normalization"])
def test_the_command_line_refuses_unknown_choices(name, tmp_path, capsys):
    with pytest.raises(SystemExit):
        TrlParser((NPOConfig,)).parse_args_and_config(["--output_dir", str(tmp_path), f"--{name}", "nonsense"])
    assert "invalid choice: 'nonsense'" in capsys.readouterr().err


def test_a_config_survives_its_own_dictionary(config_class, tmp_path):
    """`Trainer` writes the arguments into checkpoints and logs as a dictionary."""
    config = config_class(str(tmp_path), beta=0.7, retain_loss_type="kl")
    values = config.to_dict()
    again = config_class(**{field.name: values[field.name] for field in own_fields(config_class)}, output_dir="x")
    assert all(getattr(again, field.name) == getattr(config, field.name) for field in own_fields(config_class))
