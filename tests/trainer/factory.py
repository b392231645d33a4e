"""Makes the trainers that the tests beside it look at."""

from trl_unlearn import AltPOConfig, AltPOTrainer, NPOConfig, NPOTrainer, SimNPOConfig, SimNPOTrainer


TRAINERS = {
    "npo": (NPOTrainer, NPOConfig),
    "simnpo": (SimNPOTrainer, SimNPOConfig),
    "altpo": (AltPOTrainer, AltPOConfig),
}
OPTIONS = {
    "beta": 0.3,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 1,
    "max_steps": 2,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "learning_rate": 1e-3,
    "disable_tqdm": True,
    "gradient_checkpointing": False,
}


def make_trainer(method, model, output_dir, options=None, **arguments):
    """
    A trainer of a method, with options for quick and quiet tests.

    Args:
        method (`str`):
            `"npo"`, `"simnpo"` or `"altpo"`.
        model:
            Model, or a path.
        output_dir:
            Output directory.
        options (`dict`, *optional*):
            Options of the config.
        arguments:
            Further arguments of the trainer.
    """
    trainer_class, config_class = TRAINERS[method]
    config = config_class(str(output_dir), **OPTIONS | (options or {}))
    return trainer_class(model, **{"args": config, **arguments})
