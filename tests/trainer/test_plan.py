"""A plan says what the run then does."""

import pytest
from factory import TRAINERS, make_trainer

from trl_unlearn.trainer.plan import plan_of, planning


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("npo", {"max_steps": -1, "num_train_epochs": 2, "gradient_accumulation_steps": 2, "warmup_epochs": 0.5}),
        ("simnpo", {"max_steps": 5, "per_device_train_batch_size": 5}),
        ("altpo", {"max_steps": -1, "num_train_epochs": 1, "per_device_train_batch_size": 7}),
    ],
)
def test_the_plan_is_what_happens(method, options, model_dir, forget_rows, retain_rows, tmp_path):
    data = {"train_dataset": forget_rows, "retain_dataset": retain_rows}
    planned = plan_of(make_trainer(method, model_dir, tmp_path, options, **data))
    trainer = make_trainer(method, model_dir, tmp_path, options, **data)
    assert trainer._get_train_sampler().num_forget == planned["pairs"]
    warmup_steps = trainer.args.get_warmup_steps(planned["steps"])
    trainer.train()
    assert planned["steps"] == trainer.state.max_steps == trainer.state.global_step
    assert planned["warmup_steps"] == warmup_steps
    if method == "npo":
        assert 0 < warmup_steps < planned["steps"]
    assert planned["epochs"] == pytest.approx(trainer.state.epoch, rel=0.35)  # the last step may be a part of one
    assert planned["tokens"] == pytest.approx(trainer.state.log_history[-2]["num_tokens"], rel=0.1)
    assert planned["parameters"] == planned["trainable_parameters"] == trainer.model.num_parameters()
    assert planned["retain_passes"] == pytest.approx(planned["epochs"] * planned["pairs"] / 30)
    assert (planned["forget_rows"], planned["retain_rows"]) == (12, 30)
    assert planned["alternate_rows"] == (60 if method == "altpo" else 0)


def test_planning_checks_the_data_and_scores_no_reference(model_dir, forget_rows, retain_rows, lora_config, tmp_path):
    trainer_class, config_class = TRAINERS["npo"]
    arguments = {"args": config_class(str(tmp_path)), "retain_dataset": retain_rows, "peft_config": lora_config}
    trainer = planning(trainer_class)(model_dir, train_dataset=forget_rows, **arguments)
    assert "ref_logps" not in trainer.train_dataset.forget.column_names
    plan = plan_of(trainer)
    assert 0 < plan["trainable_parameters"] < plan["parameters"] / 2
    with pytest.raises(ValueError, match="Row 3 of the forget set, column `answer`: the completion is empty"):
        planning(trainer_class)(
            model_dir,
            train_dataset=forget_rows.map(
                lambda row, index: row | ({"answer": ""} if index == 3 else {}), with_indices=True
            ),
            **arguments,
        )
