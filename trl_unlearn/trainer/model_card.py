"""The model card of an unlearned model: what was done to which model, with which method."""

from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from accelerate.utils import is_peft_model
from huggingface_hub import ModelCard, ModelCardData

from .. import __version__
from .._trl import get_config_model_id


def save_model_card(
    trainer: "UnlearningTrainer",  # noqa: F821
    model_name: str | None = None,
    dataset_name: str | None = None,
    tags: str | list[str] | None = None,
) -> None:
    """
    Writes `README.md` into the trainer's output directory.

    Args:
        trainer ([`UnlearningTrainer`]):
            Trainer of the model.
        model_name (`str`, *optional*):
            Name of the model. Defaults to the name of the output directory.
        dataset_name (`str`, *optional*):
            Id of the forget set on the Hub.
        tags (`str` or `list[str]`, *optional*):
            Tags beside the method's own.
    """
    base_model = get_config_model_id(trainer.model.config)
    # A local path says nothing to others, and may say too much
    if not base_model or Path(base_model).exists():
        base_model = None
    if not dataset_name or Path(dataset_name).exists():
        dataset_name = None
    is_adapter = is_peft_model(trainer.model)
    tags = [tags] if isinstance(tags, str) else list(tags or [])
    card = ModelCard.from_template(
        ModelCardData(
            base_model=base_model,
            base_model_relation=base_model and ("adapter" if is_adapter else "finetune"),
            datasets=[dataset_name] if dataset_name else None,
            library_name="peft" if is_adapter else "transformers",
            pipeline_tag="text-generation",
            tags=sorted({*tags, *trainer._tag_names, *(["lora"] if is_adapter else [])}),
        ),
        template_str=files("trl_unlearn").joinpath("templates/unlearning_model_card.md").read_text(encoding="utf-8"),
        model_name=model_name or Path(trainer.args.output_dir).name,
        base_model=base_model,
        dataset_name=dataset_name,
        is_adapter=is_adapter,
        method=trainer._name,
        paper=trainer._paper,
        hub_model_id=trainer.hub_model_id,
        trl_unlearn_version=__version__,
        versions={name: version(name) for name in ("trl", "transformers", "peft", "torch", "datasets")},
    )
    card.save(Path(trainer.args.output_dir) / "README.md")
