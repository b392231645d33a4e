"""The trainer that all methods share: data, reference, one forward, retain loss, logs. A method adds its forget loss."""

import shutil
from collections import defaultdict
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import accelerate
import torch
from accelerate.utils import DynamoBackend, is_peft_model
from datasets import Dataset
from huggingface_hub import CommitInfo, HfApi, ModelCard
from packaging.version import Version
from torch import nn
from transformers import (
    BitsAndBytesConfig,
    DataCollator,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from transformers.trainer_utils import EvalLoopOutput, HubStrategy, TrainOutput
from transformers.utils import logging
from trl import SFTTrainer

from .._trl import (
    add_fused_lm_head,
    disable_dropout_in_model,
    get_config_model_id,
    global_then_local_main_first,
)
from ..data.collator import UnlearningCollator
from ..data.encoding import encode_dataset
from ..data.formats import check_dataset, split_alternates
from ..data.pairing import PairSampler, PairSamplerCallback, UnlearningRows
from ..files import write_text
from ..hub.push import (
    PushError,
    base_license,
    card_of,
    check_push,
    last_checkpoint,
    push_command,
    push_folder,
    write_card,
)
from ..hub.recipe import RECIPE_FILE
from ..hub.results import hub_id, save_results
from .publication import base_of, collect, commit_of_model, default_repo_name, recipe_of, source_of
from .reference import ReferenceMixin
from .scoring import (
    label_positions,
    lm_head,
    row_of_positions,
    score_rows,
    scores_in_chunks,
    take_positions,
    take_rows,
    token_kl,
)
from .sharpness import SharpnessMixin
from .unlearning_config import UnlearningConfig


logger = logging.get_logger(__name__)


class RowScores(NamedTuple):
    """
    What a forget loss is computed from, for the forget or the alternate rows of a batch.

    Args:
        logps (`torch.Tensor` of shape `(rows,)`):
            Log-probabilities of the completions under the model, summed over tokens, in nats.
        lengths (`torch.Tensor` of shape `(rows,)`):
            Numbers of completion tokens.
        ref_logps (`torch.Tensor` of shape `(rows,)` or `None`):
            The log-probabilities under the reference, for losses that use it.
    """

    logps: torch.Tensor
    lengths: torch.Tensor
    ref_logps: torch.Tensor | None


class UnlearningTrainer(ReferenceMixin, SharpnessMixin, SFTTrainer):
    """
    Base of the unlearning trainers: everything but the forget loss.

    Forget, alternate and retain rows go through the model in one forward. The reference, where a loss needs one, is the
    given `ref_model`; else the model with its new adapter switched off; else a frozen copy made before training (of the
    adapter, if the model came with one). By default its log-probabilities are computed once before training instead, and
    no copy is made.

    Args:
        model (`str` or [`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Model to be unlearned: an id on the Hub, a path, or a model. See [`~trl.SFTTrainer`].
        ref_model ([`~transformers.PreTrainedModel`], *optional*):
            Reference model, if it is not the model before unlearning.
        args ([`UnlearningConfig`], *optional*):
            Configuration. If `None`, the method's defaults, which are those of its paper.
        data_collator ([`~transformers.DataCollator`], *optional*):
            Collates rows with `input_ids` and `labels`. Defaults to TRL's
            [`~trl.trainer.sft_trainer.DataCollatorForLanguageModeling`].
        train_dataset ([`~datasets.Dataset`]):
            Forget set, with the columns `question` and `answer`; or `prompt` and `completion` (text or messages); or
            `messages`; or `text`. AltPO needs a column `alternates` or `alternate` too, or preference rows.
        retain_dataset ([`~datasets.Dataset`], *optional*):
            Retain set, in any of these formats. Required unless `retain_weight` is 0.
        eval_dataset ([`~datasets.Dataset`] or `dict[str, Dataset]`, *optional*):
            A forget set, or named sets: a name that begins with `forget` is scored by the forget loss, any other by the
            retain loss. The names stand in the metrics: `eval_forget_loss`, `eval_retain_loss`, ….
        processing_class ([`~transformers.PreTrainedTokenizerBase`], *optional*):
            Tokenizer. If `None`, it is loaded with the model's name.
        callbacks (list of [`~transformers.TrainerCallback`], *optional*):
            Callbacks to add.
        optimizers (`tuple`, *optional*, defaults to `(None, None)`):
            Optimizer and scheduler.
        quantization_config ([`~transformers.BitsAndBytesConfig`], *optional*):
            Quantization of a model given by name. Combine with `peft_config` for QLoRA.
        peft_config ([`~peft.PeftConfig`], *optional*):
            Adapter to train instead of the whole model.

    Raises:
        ValueError: If the data or options cannot be trained on; the message says what was given and what to do.
    """

    # `compute_loss` returns a mean over its micro-batch, which `Trainer` divides by the accumulation steps.
    loss_is_scaled_for_ga = False

    _tag_names = ["trl", "trl-unlearn", "unlearning", "machine-unlearning"]
    _name = "Unlearning"
    _paper: dict[str, str] = {}
    _config_class = UnlearningConfig
    _forget_loss_uses_reference = False
    _uses_alternates = False

    def __init__(
        self,
        model: "str | PreTrainedModel | PeftModel",  # noqa: F821
        ref_model: PreTrainedModel | None = None,
        args: UnlearningConfig | None = None,
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | None = None,
        retain_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, torch.optim.lr_scheduler.LambdaLR | None] = (None, None),
        quantization_config: BitsAndBytesConfig | None = None,
        peft_config: "PeftConfig | None" = None,  # noqa: F821
    ):
        # Args
        if args is None:
            model_name = model if isinstance(model, str) else get_config_model_id(model.config)
            args = self._config_class(f"{model_name.split('/')[-1]}-{self._name}")
        elif not isinstance(args, self._config_class):
            raise TypeError(
                f"`args` must be a `{self._config_class.__name__}` for `{type(self).__name__}`, got "
                f"`{type(args).__name__}`."
            )
        if ref_model is not None and ref_model is model:
            raise ValueError(
                "`model` and `ref_model` are the same object, so the reference would change with the model. Leave out "
                "`ref_model`: the model before unlearning is the reference by default."
            )
        if ref_model is not None and not isinstance(ref_model, nn.Module):
            raise TypeError(
                f"`ref_model` must be a model, got `{type(ref_model).__name__}`. Load it with "
                "`AutoModelForCausalLM.from_pretrained`."
            )
        adapter_config = (
            model.active_peft_config if isinstance(model, nn.Module) and is_peft_model(model) else peft_config
        )
        if adapter_config is not None and adapter_config.is_prompt_learning:
            raise ValueError(
                f"`{type(adapter_config).__name__}` prepends virtual tokens, which shifts the positions that the losses "
                "score. Use a LoRA-like adapter."
            )

        # Data sets, checked before a model is loaded
        if train_dataset is None:
            raise ValueError("`train_dataset` is required: it is the forget set.")
        check_dataset(train_dataset, "forget")
        self._forget_dataset = train_dataset
        if args.retain_weight > 0:
            if retain_dataset is None:
                raise ValueError(
                    f"`retain_weight` is {args.retain_weight} but there is no `retain_dataset`. Pass one, or set "
                    "`retain_weight=0.0` to forget without it (which costs utility)."
                )
            check_dataset(retain_dataset, "retain")
            self._retain_dataset = retain_dataset
        else:
            self._retain_dataset = None

        # For what is published
        self._sources = {"forget": source_of(train_dataset), "retain": source_of(self._retain_dataset)}
        self.recipe: str | None = None
        self._model_card: ModelCard | None = None
        self._remote_card: str | None = None
        self._base_license: str | None = None
        self._parent_commit: str | None = None
        self._pushes: list[tuple[str, Future]] = []
        self._hub_thread = HfApi()

        self.retain_weight = args.retain_weight  # which an evaluation may raise
        self.args = args  # what follows is decided before `Trainer` sets it
        self._uses_kl = args.retain_weight > 0 and args.retain_loss_type != "nll"
        self._precomputes = self._forget_loss_uses_reference and args.precompute_ref_log_probs
        self._adapter_is_new = peft_config is not None

        # With `padding_free=True`, SFTTrainer insists on no `max_length`, which it would not enforce. It is enforced here.
        max_length, args.max_length = args.max_length, None
        self._max_length = max_length
        try:
            super().__init__(
                model=model,
                args=args,
                data_collator=data_collator,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                processing_class=processing_class,
                callbacks=callbacks,
                optimizers=optimizers,
                quantization_config=quantization_config,
                peft_config=peft_config,
            )
        finally:
            args.max_length = max_length
        if self.is_fsdp_enabled and not self.accelerator.is_fsdp2:
            raise ValueError(
                "FSDP version 1 is not supported. Set `fsdp_version: 2`, as in `recipes/accelerate/fsdp2.yaml`."
            )
        if args.load_best_model_at_end:
            self._check_that_fsdp_loads_adapters()
        self.data_collator = UnlearningCollator(self.data_collator)
        if isinstance(model, str):
            revision = (args.model_init_kwargs or {}).get("revision")
            self.model.config._commit_hash = commit_of_model(model, revision)
        if is_peft_model(self.model):
            base_model, revision = base_of(self)
            if (
                base_model is not None
            ):  # so that the adapter can be loaded elsewhere, on the very weights it was trained on
                self.model.active_peft_config.base_model_name_or_path = base_model
                self.model.active_peft_config.revision = revision
        causal_lm = self._causal_lm(self.model)
        if args.padding_free and causal_lm.config.get_text_config() is not causal_lm.config:
            raise ValueError(
                f"`padding_free=True` is not supported for `{type(causal_lm).__name__}`: rows of some vision-language models "
                "would see each other. Leave `padding_free=False`."
            )
        is_quantized = getattr(causal_lm, "is_loaded_in_4bit", False) or getattr(causal_lm, "is_loaded_in_8bit", False)
        if is_quantized and not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            # SFTTrainer rounds adapters to bf16, where small steps are lost: at a learning rate of 1e-5, 97 % of `lora_A`
            # stood still after 20 steps. What shards a model wants one type of weights, so there it stays so.
            for parameter in self.model.parameters():
                if parameter.requires_grad:
                    parameter.data = parameter.data.float()
        if args.forget_sharpness > 0:
            self._check_sharpness()
        # The loss is not the model's own: neither its scaling nor a count of its labels is wanted.
        self.model_accepts_loss_kwargs = False

        # The fused head that SFTTrainer adds computes entropy and top-1 as well, which nothing here reads.
        add_fused_lm_head(causal_lm)
        self._compile_layers()

        # Reference
        if ref_model is not None and not (self._forget_loss_uses_reference or self._uses_kl):
            logger.warning(f"{self._name} with `retain_loss_type='nll'` uses no reference: `ref_model` is ignored.")
            ref_model = None
        caches = args.cache_ref_hidden_states
        if caches and (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            raise ValueError(
                "`cache_ref_hidden_states=True` is not supported with FSDP and DeepSpeed, which divide the reference between "
                "the processes, too. Leave it out."
            )
        self._needs_resident = (self._uses_kl and not caches) or (
            self._forget_loss_uses_reference and not self._precomputes
        )
        if ref_model is None and self._needs_resident and not self._adapter_is_new:
            ref_model = self._freeze_reference()
        self.ref_model = ref_model
        if args.disable_dropout:
            disable_dropout_in_model(self.model)
        if self.ref_model is not None:
            add_fused_lm_head(self._causal_lm(self.ref_model))
            self.ref_model = self._prepare_reference(self.ref_model)
        self._ref_head = self._keep_ref_head() if caches else None
        self._score_reference_once(self.train_dataset, "forget")
        for name, rows in self._eval_sets(self.eval_dataset).items():
            self._score_reference_once(rows, name)

        # Metrics of the steps since the last log, gathered, one value per pair of rows
        self._columns: dict[str, dict[str, list[torch.Tensor]]] = {
            "train": defaultdict(list),
            "eval": defaultdict(list),
        }

    def _compile_layers(self) -> None:
        """
        Compiles each layer in place of the whole model, which Accelerate would compile.

        Nearly all the work is in the layers. The rest is a hook that picks label positions, and TRL's fused head: their
        shapes follow the data, and compiled with an adapter or the KL retain loss they fail (seen with torch 2.13).
        """
        plugin = self.accelerator.state.dynamo_plugin
        if plugin.backend == DynamoBackend.NO:
            return
        causal_lm = self._causal_lm(self.model)
        layers = [m for m in causal_lm.modules() if type(m).__name__ in (causal_lm._no_split_modules or ())]
        if not layers:
            raise ValueError(
                f"`torch_compile` compiles the layers of a model, and `{type(causal_lm).__name__}` does not tell which of "
                "its modules they are. Leave `torch_compile=False`."
            )
        for layer in layers:
            layer.compile(**plugin.to_kwargs())
        plugin.backend = DynamoBackend.NO

    # ------------------------------------------------------------------ data

    def _prepare_dataset(self, dataset, processing_class, args, packing, formatting_func, dataset_name):
        """Replaces `SFTTrainer`'s preparation: keeps whole rows, names the bad ones, pairs forget and retain."""
        if isinstance(dataset, UnlearningRows):
            return dataset
        tokenizer = self._tokenizer
        if tokenizer.eos_token is None:
            raise ValueError(
                "The tokenizer has no EOS token, which every completion ends with. Set `tokenizer.eos_token`, or "
                "`eos_token` in the config."
            )
        if getattr(processing_class, "chat_template", None) is not None:  # of a processor, which it is used with later
            tokenizer.chat_template = processing_class.chat_template
        _check_chat_template(tokenizer)

        def encode(rows: Dataset, name: str) -> Dataset:
            with global_then_local_main_first():  # the other processes read what the first has cached
                return encode_dataset(
                    rows, tokenizer, name, self._max_length, args.question_answer_template, args.dataset_num_proc
                )

        is_train = dataset is self._forget_dataset
        if is_train:
            self._forget_dataset = None  # given again, under whatever name, it is a set to evaluate
        name = "forget" if is_train else dataset_name
        if not is_train and dataset_name != "eval" and not dataset_name.startswith("forget"):
            return UnlearningRows(retain=encode(dataset, name).remove_columns("digest"))

        alternate, owners = None, None
        if self._uses_alternates:
            dataset, alternates, owners = split_alternates(dataset, name)
        forget = encode(dataset, name)  # first, so that a bad prompt is named by its row in the user's own set
        if self._uses_alternates:
            alternate = encode(alternates, "alternate").remove_columns("digest")
        retain = None
        if is_train and self._retain_dataset is not None:
            retain = encode(self._retain_dataset, "retain")
            retained = set(retain["digest"])
            num_both = sum(digest in retained for digest in forget["digest"])
            if num_both:
                logger.warning(
                    f"{num_both} of {len(forget)} rows of the forget set stand in the retain set too. They are pushed "
                    "away and pulled back at once: remove them from the retain set."
                )
            retain = retain.remove_columns("digest")
        return UnlearningRows(forget.remove_columns("digest"), retain, alternate, owners)

    def _set_signature_columns_if_needed(self):
        self._signature_columns = ["forget", "alternate", "retain", "share"]

    def _get_train_sampler(self, train_dataset: UnlearningRows | None = None) -> PairSampler:
        rows = train_dataset if train_dataset is not None else self.train_dataset
        seed = self.args.data_seed if self.args.data_seed is not None else self.args.seed
        processes = self.accelerator.num_processes
        batch_size = self._train_batch_size * (1 if self.accelerator.split_batches else processes)
        if self.args.dataloader_drop_last and len(rows) < batch_size:
            raise ValueError(
                f"The forget set has {len(rows)} rows, fewer than the {batch_size} of one batch on {processes} processes, and "
                "`dataloader_drop_last=True` leaves that one out. Set it to `False`, or use fewer processes or a smaller "
                "`per_device_train_batch_size`."
            )
        fills_up = processes > 1 and not self.args.dataloader_drop_last
        sampler = PairSampler(
            len(rows),
            len(rows.retain or ()),
            seed,
            self.args.pairing,
            batch_size if fills_up else 1,
            processes,
            lengths=rows.lengths() if self.args.bucket_by_length else None,
            bucket_size=batch_size,
        )
        self.remove_callback(PairSamplerCallback)
        self.add_callback(PairSamplerCallback(sampler))
        return sampler

    def _causal_lm(self, model: nn.Module) -> PreTrainedModel:
        model = self.accelerator.unwrap_model(model)
        return model.get_base_model() if is_peft_model(model) else model

    @staticmethod
    def _eval_sets(eval_dataset: Any) -> dict[str, UnlearningRows]:
        if eval_dataset is None:
            return {}
        return eval_dataset if isinstance(eval_dataset, dict) else {"eval": eval_dataset}

    # ------------------------------------------------------------------ loss

    def forget_loss(self, forget: RowScores, alternate: RowScores | None) -> torch.Tensor:
        """
        Forget loss of each sequence, of shape `(rows,)`. Each method implements it.

        Args:
            forget ([`RowScores`]):
                Scores of the forget completions.
            alternate ([`RowScores`], *optional*):
                Scores of the alternate completions, for methods that use them.
        """
        raise NotImplementedError(f"`{type(self).__name__}` must implement `forget_loss`.")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        num_forget, num_alternate, num_retain = inputs["num_rows"]
        num_pairs = max(inputs["num_rows"])
        first_retain = num_forget + num_alternate
        share = inputs.get("share", 1.0)
        uses_kl = num_retain > 0 and self._uses_kl
        runs_for_kl = uses_kl and not self.args.cache_ref_hidden_states
        if self.aux_loss_enabled:
            inputs["output_router_logits"] = True

        ref_logps = inputs.get("ref_logps")
        scores_reference = self._forget_loss_uses_reference and num_forget > 0 and ref_logps is None
        if scores_reference or runs_for_kl:
            # Only the rows that need the reference go through it; rows without padding cannot be taken apart.
            start = 0 if scores_reference or "seq_idx" in inputs else first_retain
            stop = sum(inputs["num_rows"]) if runs_for_kl or "seq_idx" in inputs else first_retain
            ref_inputs = take_rows(inputs, start, stop) if stop - start < sum(inputs["num_rows"]) else inputs
            ref_hidden_states = []
            ref_model, context = self._reference()
            with context:
                scores = self._score_reference(ref_inputs, ref_model, ref_hidden_states.append)
                with torch.no_grad():
                    ref_head = lm_head(self._causal_lm(ref_model))
            if scores_reference:
                ref_logps = scores[:first_retain]
            if runs_for_kl:
                ref_positions, _ = self._retain_positions(ref_inputs, first_retain - start)
                ref_hidden_states = take_positions(ref_hidden_states[0], ref_positions)
        if uses_kl and not runs_for_kl:
            ref_hidden_states, ref_head = inputs["ref_hidden_states"], lm_head(self._causal_lm(model), self._ref_head)

        # Row sums of the retain loss, and what they are divided by
        retain_sums, retain_counts = [], []

        def add_kl(hidden_states: torch.Tensor) -> None:
            positions, rows = self._retain_positions(inputs, first_retain)
            kl = token_kl(
                lm_head(self._causal_lm(model)),
                take_positions(hidden_states, positions),
                ref_head,
                ref_hidden_states,
                in_chunks=ref_head.softcap is None
                and scores_in_chunks(model, self._causal_lm(model), hidden_states.device),
            )
            rows = rows[positions].to(kl.device)
            zeros = torch.zeros(num_retain, dtype=torch.float32, device=kl.device)
            retain_sums.append(zeros.index_add(0, rows, kl))
            retain_counts.append(zeros.index_add(0, rows, torch.ones_like(kl)))

        logps, lengths, outputs = score_rows(
            model,
            self._causal_lm(model),
            inputs,
            add_kl if uses_kl else None,
            num_graded_rows=first_retain if uses_kl else None,  # those of retain rows are then only logged
        )
        if num_retain > 0 and not uses_kl:
            retain_sums, retain_counts = [-logps[first_retain:]], [lengths[first_retain:]]

        columns: dict[str, torch.Tensor] = {}
        loss = logps.new_zeros(())
        if num_forget > 0:

            def scores_of(rows: slice) -> RowScores:
                return RowScores(logps[rows], lengths[rows], None if ref_logps is None else ref_logps[rows])

            forget = scores_of(slice(num_forget))
            alternate = scores_of(slice(num_forget, first_retain)) if num_alternate > 0 else None
            forget_losses = self.forget_loss(forget, alternate)
            columns |= self._forget_columns(forget_losses.detach(), forget, alternate)
            if self.args.forget_floor is not None:
                is_forgotten = (forget.logps.detach() / forget.lengths).exp() <= self.args.forget_floor
                forget_losses = forget_losses * ~is_forgotten
                columns["forgotten"] = is_forgotten
            forget_loss = forget_losses.mean()
            if self.args.forget_sharpness > 0 and not self._is_in_forget_pass:
                forget_loss = forget_loss.detach() + 0 * forget_loss  # its gradient is there already
            loss = loss + share * self.args.forget_weight * forget_loss
        if num_retain > 0:
            sums, counts = retain_sums[0], retain_counts[0]
            retain_loss = share * sums.sum() / counts.sum()
            columns["retain_loss"] = (sums.sum() / counts.sum()).detach().expand(num_pairs)
            columns["retain_sums"], columns["retain_counts"] = sums.detach(), counts
            columns["logps/retain"] = logps[first_retain:].detach()
            columns["lengths/retain"] = lengths[first_retain:]
            if num_items_in_batch is not None:
                # `Trainer` divides by the accumulation steps, and the processes average their gradients.
                parts = self.current_gradient_accumulation_steps * self.accelerator.num_processes
                retain_loss = (share > 0) * sums.sum() * parts / num_items_in_batch
            loss = loss + self.retain_weight * retain_loss
        if self._is_in_forget_pass:
            return loss
        if self.aux_loss_enabled:
            loss = loss + share * self.router_aux_loss_coef * outputs.aux_loss
            columns["aux_loss"] = outputs.aux_loss.detach().expand(num_pairs)

        mode = "train" if self.model.training else "eval"
        mask = inputs.get("attention_mask")
        num_tokens = inputs["input_ids"].numel() if mask is None else mask.sum()
        columns["num_tokens"] = torch.as_tensor(num_tokens / num_pairs, device=logps.device).expand(num_pairs)
        values = torch.stack([c.float() for c in columns.values()], dim=1)
        if "share" in inputs:  # not as many rows on each process, and those that fill up do not count
            values = values if share > 0 else values * torch.nan
            gathered = self.accelerator.gather(self.accelerator.pad_across_processes(values, pad_index=torch.nan))
            gathered = gathered[~gathered.isnan().all(dim=1)]
        elif mode == "train":
            gathered = self.accelerator.gather(values)
        else:
            gathered = self.accelerator.gather_for_metrics(values)
        for name, column in zip(columns, gathered.unbind(1), strict=True):
            self._columns[mode][name].append(column)
        return (loss, outputs) if return_outputs else loss

    def _retain_positions(self, inputs: dict[str, Any], first_retain: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mask of the positions that the retain loss is taken at, and the retain row of every position."""
        rows = row_of_positions(inputs) - first_retain
        if self.args.retain_loss_type == "kl_all_positions":
            return rows >= 0, rows
        return label_positions(inputs) & (rows[:, 1:] >= 0), rows[:, 1:]

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | None:
        """Number of retain tokens of the whole optimizer batch, on all processes, where the loss is divided by it."""
        if self.args.retain_normalization == "micro_batch" or self._retain_dataset is None:
            return None
        count = torch.zeros((), dtype=torch.long, device=device)
        for inputs in batch_samples:
            if inputs.get("share") == 0:
                continue
            positions, _ = self._retain_positions(inputs, sum(inputs["num_rows"][:2]))
            count += positions.sum().to(device)
        return self.accelerator.reduce(count, "sum")

    # ------------------------------------------------------------------ logs

    def _forget_columns(
        self, losses: torch.Tensor, forget: RowScores, alternate: RowScores | None
    ) -> dict[str, torch.Tensor]:
        # The weight of a sequence in the gradient, |dℓ/d log π|, from the loss itself so that it cannot disagree with it
        with torch.enable_grad():
            detached = forget.logps.detach().requires_grad_()
            loss = self.forget_loss(
                forget._replace(logps=detached),
                alternate and alternate._replace(logps=alternate.logps.detach()),
            )
            (weights,) = torch.autograd.grad(loss.sum(), detached)
        columns = {"forget_loss": losses, "forget_weights": weights.abs()}
        for role, scores in (("forget", forget), ("alternate", alternate)):
            if scores is None:
                continue
            columns[f"logps/{role}"] = scores.logps.detach()
            columns[f"lengths/{role}"] = scores.lengths
            if scores.ref_logps is not None:
                columns[f"rewards/{role}"] = self.args.beta * (scores.logps.detach() - scores.ref_logps)
        if "rewards/alternate" in columns:
            columns["rewards/margins"] = columns["rewards/alternate"] - columns["rewards/forget"]
            columns["rewards/accuracies"] = (columns["rewards/margins"] > 0).float()
        return columns

    def _pop_metrics(self, mode: str) -> dict[str, float]:
        """Averages over the pairs since the last call; log-probabilities are per token. One transfer from the device."""
        columns = self._columns[mode]
        if not columns:
            return {}
        sums = {name: torch.cat(values).double().sum() for name, values in columns.items()}
        num_pairs = {name: sum(len(value) for value in values) for name, values in columns.items()}
        columns.clear()
        sums = dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True))
        if mode == "train":
            if self._total_train_tokens == 0:  # or, in a resumed run, what was counted before
                logged = [entry["num_tokens"] for entry in self.state.log_history if "num_tokens" in entry]
                self._total_train_tokens = max(logged, default=0)
            self._total_train_tokens += round(sums["num_tokens"])
        metrics = {"num_tokens": self._total_train_tokens}
        for name, value in sums.items():
            if name.startswith("logps/"):
                metrics[name] = value / sums[name.replace("logps/", "lengths/")]
            elif not name.startswith("lengths/") and name not in ("num_tokens", "retain_sums", "retain_counts"):
                metrics[name] = value / num_pairs[name]
        if mode == "eval" and "retain_sums" in sums:
            metrics["retain_loss"] = sums["retain_sums"] / sums["retain_counts"]  # over the whole set
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if self.model.training:
            logs.update(self._pop_metrics("train"))
        super().log(logs, start_time)

    # ------------------------------------------------------------------ evaluation

    def evaluate(
        self,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """
        Evaluates forget and retain sets, each apart.

        Args:
            eval_dataset ([`~datasets.Dataset`] or `dict[str, Dataset]`, *optional*):
                A forget set, or named sets as in the constructor. Defaults to the trainer's own.
            ignore_keys (`list[str]`, *optional*):
                Not used: no model outputs are collected.
            metric_key_prefix (`str`, *optional*, defaults to `"eval"`):
                Prefix of the metrics.

        Returns:
            `dict[str, float]`: `{prefix}_loss` (the unweighted forget or retain loss), `{prefix}_logps/forget`, ….
            With named sets the name follows the prefix: `{prefix}_forget_loss`, `{prefix}_retain_loss`, ….
        """
        if eval_dataset is not None and not isinstance(eval_dataset, str):
            is_dict = isinstance(eval_dataset, dict)
            sets = {
                name: self._prepare_dataset(dataset, self.processing_class, self.args, False, None, name)
                for name, dataset in self._eval_sets(eval_dataset).items()
            }
            for name, rows in sets.items():
                self._score_reference_once(rows, name)
            eval_dataset = sets if is_dict else sets["eval"]
        return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs) -> EvalLoopOutput:
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        metrics = self._pop_metrics("eval")
        # `Trainer` averages over batches; these are exact, and carry the name of their set
        metrics["loss"] = metrics.pop("forget_loss" if "forget_loss" in metrics else "retain_loss")
        output.metrics.update({f"{metric_key_prefix}_{name}": value for name, value in metrics.items()})
        return output

    # ------------------------------------------------------------------ saving

    def train(self, *args, **kwargs) -> TrainOutput:
        self._model_card = None  # what is built after training has its results
        return super().train(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        self._check_that_fsdp_loads_adapters()
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _check_that_fsdp_loads_adapters(self) -> None:
        if self.is_fsdp_enabled and is_peft_model(self.model) and Version(accelerate.__version__) < Version("1.15.0"):
            raise ValueError(
                f"accelerate {accelerate.__version__} does not load adapters from FSDP checkpoints: training would go on from "
                "a new one, without a word. Install accelerate 1.15.0 or later."
            )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled else None
        if (
            plugin is None or self.is_in_train
        ):  # a checkpoint may be in shards, which are faster to save and to resume from
            return super().save_model(output_dir, _internal_call)
        state_dict_type = plugin.state_dict_type
        plugin.set_state_dict_type("FULL_STATE_DICT")
        try:
            super().save_model(output_dir, _internal_call)
        finally:
            plugin.set_state_dict_type(state_dict_type)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        causal_lm = self._causal_lm(self.model)
        if state_dict and not is_peft_model(self.model) and causal_lm.config.get_text_config().tie_word_embeddings:
            for name in causal_lm._tied_weights_keys or ():  # gathered from shards, they would be saved twice
                state_dict.pop(name, None)
        super()._save(output_dir, state_dict)
        directory = Path(output_dir or self.args.output_dir)
        # PEFT saves all adapters. The frozen copy is the model before unlearning: it must not be published with it.
        shutil.rmtree(directory / "ref", ignore_errors=True)
        if self.is_world_process_zero():
            results = collect(self)
            save_results(results, directory)
            write_text(self.recipe or recipe_of(self), directory / RECIPE_FILE)
            callback = self._evaluation_callback()
            if callback is not None and callback.evaluations:
                from ..evaluation.plots import plot_trajectory  # and matplotlib, only where something is drawn

                plot_trajectory(callback.evaluations, directory / "unlearning.png")
            try:  # last, since PEFT rewrites cards when it saves
                write_card(self._build_card() if self.is_in_train else self.model_card, results, directory)
            except ValueError as error:  # an older card that cannot be read is no reason to stop a training
                logger.error(f"No card was written into {directory}. {error}")

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.args.save_total_limit is not None:
            self._finish_current_push()  # of a checkpoint that may now be removed
        super(SFTTrainer, self)._save_checkpoint(model, trial)  # SFTTrainer's would write a card beside the checkpoint

    def _evaluation_callback(self) -> "UnlearningEvalCallback | None":  # noqa: F821
        from ..evaluation.callback import UnlearningEvalCallback

        callbacks = self.callback_handler.callbacks
        return next((callback for callback in callbacks if isinstance(callback, UnlearningEvalCallback)), None)

    # ------------------------------------------------------------------ card

    @property
    def model_card(self) -> ModelCard:
        """
        The card, with the results of the training. It may be edited: it is saved and pushed as it then is.

        Example:

        ```python
        >>> trainer.train()
        >>> trainer.model_card.text += "\n## Contact\n\nWrite to me.\n"
        >>> trainer.push_to_hub()
        ```
        """
        if self._model_card is None:
            self._model_card = self._build_card()
        return self._model_card

    def _build_card(self) -> ModelCard:
        return card_of(self.args.output_dir, collect(self), self.hub_model_id, self._remote_card)

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """
        Builds the card anew and writes it as `README.md` into the output directory.

        Args:
            model_name (`str`, *optional*):
                Repository of the model, for the snippet. Defaults to the one that it is pushed to.
            dataset_name (`str`, *optional*):
                Id of the forget set on the Hub, where the rows do not tell it themselves.
            tags (`str` or `list[str]`, *optional*):
                Tags to add.
        """
        if not self.is_world_process_zero():
            return
        if dataset_name is not None and hub_id(dataset_name):
            self._sources["forget"] |= {"dataset": dataset_name, "private": False}
        results = collect(self)
        self._model_card = card_of(self.args.output_dir, results, model_name or self.hub_model_id, self._remote_card)
        tags = [tags] if isinstance(tags, str) else tags or []
        self._model_card.data.tags = [*dict.fromkeys([*(self._model_card.data.tags or []), *tags])]
        write_card(self._model_card, results, self.args.output_dir)

    # ------------------------------------------------------------------ push

    def init_hf_repo(self, token: str | None = None, private: bool | None = None, create: bool = True) -> None:
        """
        Makes sure, before training, that the model can be pushed, and creates its repository.

        Args:
            token (`str`, *optional*):
                Token. Defaults to `hub_token`, and to that of the login.
            private (`bool`, *optional*):
                What the repository must be. Defaults to `hub_private_repo`.
            create (`bool`, *optional*, defaults to `True`):
                Whether to create it. Without, nothing on the Hub is changed.

        Raises:
            PushError: If it cannot be pushed; the message says what to do.
        """
        if not self.is_world_process_zero():
            return
        token = token or self.args.hub_token
        base_model, revision = base_of(self)
        target = check_push(
            self.args.hub_model_id or default_repo_name(self),
            self.args.hub_private_repo if private is None else private,
            self.args.hub_revision,
            token,
            base_model or get_config_model_id(self.model.config) if is_peft_model(self.model) else None,
            create,
        )
        self.hub_model_id, self._parent_commit, self._remote_card = target
        if base_model is not None:
            self._base_license = base_license(base_model, revision, token)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ) -> "CommitInfo | Future[CommitInfo] | None":
        """
        Saves everything (model, tokenizer, results, recipe, card) to the output directory, then pushes it.

        Of the directory, only what [`~hub.push.PUBLISHED`] lists is pushed: no checkpoint, no `training_args.bin`, no
        evaluation with its rows.

        Args:
            commit_message (`str`, *optional*, defaults to `"End of training"`):
                Title of the commit.
            blocking (`bool`, *optional*, defaults to `True`):
                Whether to return when it is done, and not while it is.
            token (`str`, *optional*):
                Token. Defaults to `hub_token`, and to that of the login.
            revision (`str`, *optional*):
                Branch, made if it is missing. Defaults to `hub_revision`.
            private (`bool`, *optional*):
                What the repository must be. Defaults to `hub_private_repo`.
            kwargs:
                Arguments of [`~UnlearningTrainer.create_model_card`], which then builds the card anew.

        Returns:
            [`~huggingface_hub.CommitInfo`]: The commit; with `blocking=False` a future of it, and `None` on all processes
            but the first.

        Raises:
            PushError: If it fails. The message says where everything lies and which command pushes it.
        """
        directory = self.args.output_dir
        repo_id = self.hub_model_id or self.args.hub_model_id or default_repo_name(self)
        try:
            self.save_model(_internal_call=True)
        except Exception as error:
            checkpoint = last_checkpoint(directory)
            raise PushError(
                f"Nothing was pushed, because saving to {directory} failed: {error}\nThe model is still in memory: make room, "
                "or set `trainer.args.output_dir` to another folder, and call `trainer.push_to_hub()` again."
                + (
                    f" To push the last checkpoint instead:\n    {push_command(checkpoint, repo_id)}"
                    if checkpoint is not None
                    else ""
                )
            ) from error
        if not self.is_world_process_zero():
            return None
        if kwargs:
            self.create_model_card(**kwargs)
        self._tell_callbacks()
        self._finish_current_push()
        if blocking:
            return self._push(directory, repo_id, commit_message, token, revision, private)
        return self._push_in_background(directory, repo_id, commit_message, token, revision, private)

    def _push(
        self,
        directory: str,
        repo_id: str,
        commit_message: str,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
    ) -> CommitInfo:
        is_usual = self.hub_model_id is not None and revision in (None, self.args.hub_revision)
        commit = push_folder(
            directory,
            repo_id,
            private=self.args.hub_private_repo if private is None else private,
            revision=revision or self.args.hub_revision,
            token=token or self.args.hub_token,
            parent_commit=self._parent_commit if is_usual else None,
            commit_message=commit_message,
        )
        if is_usual:
            self._parent_commit = commit.oid
        return commit

    def _push_in_background(self, directory: str, *arguments) -> Future:
        push = self._hub_thread.run_as_future(self._push, directory, *arguments)
        self._pushes.append((directory, push))
        return push

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Pushes a checkpoint in the background, unless the one before is still under way."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if not self.args.hub_always_push and any(not push.done() for _, push in self._pushes):
            return
        self._tell_callbacks()
        message = f"Training in progress, step {self.state.global_step}"
        self._push_in_background(checkpoint_folder, self.hub_model_id, message)

    def _tell_callbacks(self) -> None:
        if hasattr(self.callback_handler, "on_push_begin"):  # since transformers 5
            self.callback_handler.on_push_begin(self.args, self.state, self.control)

    def _finish_current_push(self) -> None:
        """Waits for pushes in the background, and says which have failed."""
        while self._pushes:
            directory, push = self._pushes.pop(0)
            if push.exception() is not None:
                logger.error(f"{directory} was not pushed. {push.exception()}")


def _check_chat_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuses a chat template that would leave out the text of the rows."""
    if tokenizer.chat_template is None:
        return
    messages = [{"role": "user", "content": "Question?"}, {"role": "assistant", "content": "Answer."}]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    if not all(message["content"] in text for message in messages):
        raise ValueError(
            f"The chat template leaves out messages that are plain text: it wrote {text!r}. Templates of some "
            "vision-language models want a list of parts. Set one that takes text as `chat_template`."
        )
