"""The model before unlearning: where it comes from, how it is called, and what of it is computed once before training."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import fsdp2_prepare_model, gather_object, is_peft_model
from datasets import Dataset
from datasets.fingerprint import Hasher
from safetensors.torch import save
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from .._trl import disable_dropout_in_model, disable_gradient_checkpointing, prepare_deepspeed, use_adapter
from ..data.pairing import StoredRows, UnlearningRows
from ..evaluation.store import model_digest
from ..files import write_arrow
from .scoring import FrozenHead, hidden_states_of_labels, lm_head, score_rows


# Folder of an output directory. It is never published.
REFERENCE_DIR = "_reference"


class ReferenceMixin:
    """The part of an [`UnlearningTrainer`] that concerns its reference."""

    def _freeze_reference(self) -> nn.Module | None:
        """The model as it is now, kept: a `"ref"` copy of the adapter, or a copy of the whole model."""
        if is_peft_model(self.model) and not self.is_fsdp_enabled:
            from peft import get_peft_model_state_dict, set_peft_model_state_dict

            adapter = self.model.active_adapter
            self.model.add_adapter("ref", self.model.peft_config[adapter])
            state_dict = get_peft_model_state_dict(self.model, adapter_name=adapter)
            set_peft_model_state_dict(self.model, state_dict, adapter_name="ref")
            return None
        if not any(hasattr(parameter, "ds_tensor") for parameter in self.model.parameters()):
            return copy.deepcopy(self.model)
        # ZeRO-3 has sharded the weights when the model was made: another of the same shape is, and takes the shards over.
        ref_model = type(self.model)._from_config(self.model.config, dtype=self.model.dtype)
        for ref_parameter, parameter in zip(ref_model.parameters(), self.model.parameters(), strict=True):
            ref_parameter.ds_tensor.data.copy_(parameter.ds_tensor.data)
        return ref_model

    def _prepare_reference(self, ref_model: nn.Module) -> nn.Module:
        ref_model.requires_grad_(False).eval()
        if self.args.disable_dropout:
            disable_dropout_in_model(ref_model)
        if self.is_deepspeed_enabled:
            return prepare_deepspeed(ref_model, self.accelerator)
        if self.is_fsdp_enabled:
            return fsdp2_prepare_model(self.accelerator, ref_model)
        return self.accelerator.prepare_model(ref_model, evaluation_mode=True)

    def _reference(self) -> tuple[nn.Module, Any] | None:
        """The model to call for the reference and the context to call it in, if a reference is kept."""
        if self.ref_model is not None:
            return self.ref_model, nullcontext()
        model = self.accelerator.unwrap_model(self.model)
        if is_peft_model(model) and "ref" in model.peft_config:
            return self.model, use_adapter(model, "ref")
        if self._adapter_is_new:
            return self.model, use_adapter(model, None)
        return None

    @contextmanager
    def _placed_reference(self) -> Iterator[nn.Module]:
        """The reference where there may have been no training yet, which is what places and shards the model."""
        # Untrained, the model is its own reference.
        model, context = self._reference() or (self.model, nullcontext())
        if model is self.model and self.is_deepspeed_enabled and self.deepspeed is None:
            engine = prepare_deepspeed(model, self.accelerator)
            with context:
                yield engine
            engine.destroy()  # else its hooks would run in the engine that trains, too
        elif model is self.model and self.is_fsdp_enabled and not isinstance(model, FSDPModule):
            # Some processes may not hold the weights. A copy, since `train` shards the model together with its optimizer
            with context:
                yield self._prepare_reference(copy.deepcopy(model))
        else:
            with context:
                yield model

    @torch.no_grad()
    def _score_reference(
        self, inputs: dict[str, Any], model: nn.Module, on_hidden_states: Callable | None = None
    ) -> torch.Tensor:
        # Reentrant checkpointing warns about inputs without gradients.
        with disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            logps, _, _ = score_rows(model, self._causal_lm(model), inputs, on_hidden_states)
        return logps

    def _precompute_ref_logps(self, rows: UnlearningRows, name: str) -> None:
        """Adds the column `ref_logps` to the forget and alternate rows: one pass, sorted by length, in large batches."""
        was_training = self.model.training
        self.model.eval()
        for role in ("forget", "alternate"):
            part = getattr(rows, role)
            if part is None:
                continue
            order = _longest_first(part)
            batches = self._batches(part.select(order), f"Reference log-probabilities, {name} set, {role} rows")
            logps = []
            with self._placed_reference() as model, self.accelerator.autocast():
                for batch in batches:
                    scores = self._score_reference(batch, model)
                    logps.append(self.accelerator.gather_for_metrics(scores).cpu())
            column = np.empty(len(part), dtype=np.float32)
            column[order] = torch.cat(logps).numpy()
            setattr(rows, role, part.add_column("ref_logps", column))
        self.model.train(was_training)

    def _keep_ref_head(self) -> FrozenHead | None:
        """The reference's LM head, unless it is the model's own and is not trained."""
        is_trained = lm_head(self._causal_lm(self.model)).weight.requires_grad
        if not is_trained and self.ref_model is None:
            return None
        model, context = self._reference() or (self.model, nullcontext())
        with context:
            return FrozenHead(lm_head(self._causal_lm(model)))

    def _cache_ref_hidden_states(self, rows: UnlearningRows, name: str) -> None:
        """
        Puts the reference's hidden states at the labels of the retain rows beside them, in a file that is memory-mapped.

        A file of an earlier run is taken if rows, weights and precision were the same. Of a training set, only the rows
        that the run will come to are computed.
        """
        indices = self._retain_rows_to_come() if rows is self.train_dataset else np.arange(len(rows.retain))
        part = rows.retain.select(indices)
        order = _longest_first(part)
        part = part.select(order)
        was_training = self.model.training
        self.model.eval()
        with self._placed_reference() as model, self.accelerator.autocast():
            what = (
                model_digest(self._causal_lm(model)),
                part["input_ids"],
                part["labels"],
                self.accelerator.mixed_precision,
            )
            path = Path(self.args.output_dir) / REFERENCE_DIR / f"{Hasher.hash(what)}.arrow"
            if not all(gather_object([path.exists()])):
                batches = self._ref_hidden_states(model, part, name)
                if self.is_local_process_zero():
                    write_arrow(path, "ref_hidden_states", batches)
                else:
                    for _ in batches:
                        pass
                self.accelerator.wait_for_everyone()
        self.model.train(was_training)
        places = np.full(len(rows.retain), -1)
        places[indices[order]] = np.arange(len(order))
        rows.ref_hidden_states = StoredRows(Dataset.from_file(str(path)), places)

    @torch.no_grad()
    def _ref_hidden_states(self, model: nn.Module, part: Dataset, name: str) -> Iterator[list[bytes]]:
        """For each batch, on all processes together, a tensor of each row, of shape `(labels, hidden size)`."""
        for batch in self._batches(part, f"Reference hidden states, {name} set, retain rows"):
            states = [
                save({"ref_hidden_states": of_row.cpu().contiguous()})
                for of_row in hidden_states_of_labels(self._causal_lm(model), batch)
            ]
            yield self.accelerator.gather_for_metrics(states, use_gather_object=True)

    def _retain_rows_to_come(self) -> np.ndarray:
        args, sampler = self.args, self._get_train_sampler()
        epochs = ceil(args.num_train_epochs)
        if args.max_steps > 0:
            pairs = self._train_batch_size * args.gradient_accumulation_steps * self.accelerator.num_processes
            epochs = ceil(args.max_steps / max(len(sampler) // pairs, 1))
        retain = set()
        for sampler.epoch in range(epochs):
            retain.update(pair[1] for pair in sampler)
        return np.array(sorted(retain))

    def _batches(self, part: Dataset, description: str) -> Iterator[dict[str, Any]]:
        """Batches of rows for the reference, with a progress bar; larger than in training, since no gradients are kept."""
        batch_size = self.args.precompute_ref_batch_size or 4 * self.args.per_device_train_batch_size
        loader = DataLoader(UnlearningRows(part), batch_size, collate_fn=self.data_collator, shuffle=False)
        disable = self.args.disable_tqdm or not self.is_local_process_zero()
        for batch in tqdm(self.accelerator.prepare(loader), desc=description, disable=disable):
            yield self._prepare_inputs(batch)

    def _score_reference_once(self, rows: UnlearningRows, name: str) -> None:
        """Computes what the losses need of the reference, unless the rows have it already."""
        has_logps = rows.forget is None or "ref_logps" in rows.forget.column_names
        has_hidden_states = rows.retain is None or rows.ref_hidden_states is not None
        if self._precomputes and not has_logps:
            self._check_reference_is_left(name)
            self._precompute_ref_logps(rows, name)
        if self.args.cache_ref_hidden_states and not has_hidden_states:
            self._check_reference_is_left(name)
            self._cache_ref_hidden_states(rows, name)

    def _check_reference_is_left(self, name: str) -> None:
        if self._reference() is None and self.state.global_step > 0:
            raise ValueError(
                f"The {name} set was passed to `evaluate` after training has changed the model, and no reference is left "
                "to score it: what is needed of it for the sets known before was computed in advance. Pass the set as "
                "`eval_dataset` when the trainer is made, or pass a `ref_model`, or set "
                "`precompute_ref_log_probs=False` and `cache_ref_hidden_states=False`."
            )


def _longest_first(part: Dataset) -> np.ndarray:
    return np.argsort([-len(ids) for ids in part["input_ids"]], kind="stable")
