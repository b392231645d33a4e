"""Everything an evaluation asks of a model, each distinct thing once, and the one run that answers it."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .batching import batch_by_length, evaluation_mode, run_batches
from .forward import can_select_from_cache
from .generate import Continuation, decode_batch, generate_batch, generation_settings, pad_token_id
from .gradnorm import gradient_norms
from .sampling import Sampling
from .score import Completion, batch_questions, num_scored_tokens, score_batch
from .store import RowStore, is_sharded


# Measured: on a CPU larger batches are slower, and take more memory (tests/benchmarks/evaluation.py).
_MAX_BATCH_TOKENS = {"cpu": 2048}
_MAX_BATCH_TOKENS_ON_ACCELERATOR = 16384
# A prompt that is continued has logits at its last position only, so that more tokens fit.
_GENERATION_FACTOR = 64
_MAX_GENERATION_TOKENS = 131072


@dataclass
class Plan:
    """
    What is to be scored and continued. Asking for the same thing twice costs nothing.

    Attributes:
        scores (`dict[Completion, dict]`):
            By prompt and completion, what [`score_batch`] gives; `None` until [`run`].
        with_moments (`set[Completion]`):
            Those that are scored with `mu` and `sigma`.
        generations (`dict[Continuation, list[int]]`):
            By prompt and limit, and repeat of those that are drawn, the new tokens that [`generate_batch`] gives.
        gradient_norms (`dict[Completion, list[float]]`):
            By prompt and completion, what [`gradient_norms`] gives.
        cost (`Counter`):
            What was computed and not found on disk, over all processes: `scored_rows`, `scored_tokens`, `padded_tokens`,
            `generated_tokens`, `decoding_steps`; and `seconds`.
    """

    scores: dict[Completion, dict[str, list] | None] = field(default_factory=dict)
    with_moments: set[Completion] = field(default_factory=set)
    generations: dict[Continuation, list[int] | None] = field(default_factory=dict)
    gradient_norms: dict[Completion, list[float] | None] = field(default_factory=dict)
    cost: Counter = field(default_factory=Counter)

    def score(self, prompt_ids: list[int], completion_ids: list[int], moments: bool = False) -> Completion:
        """Asks for the score of a completion, for min-k++ with moments; the result is the key to find it by."""
        key = (tuple(prompt_ids), tuple(completion_ids))
        self.scores.setdefault(key)
        if moments and key not in self.with_moments:
            self.with_moments.add(key)
            self.scores[key] = None
        return key

    def generate(self, prompt_ids: list[int], max_new_tokens: int, repeat: int | None = None) -> Continuation:
        """Asks for a continuation, with the number of its repeat if it is to be drawn; the result is the key to find it by."""
        key = (tuple(prompt_ids), max_new_tokens, *(() if repeat is None else (repeat,)))
        self.generations.setdefault(key)
        return key

    def gradients(self, prompt_ids: list[int], completion_ids: list[int]) -> Completion:
        """Asks for the gradient norms of a completion; the result is the key to find them by."""
        key = (tuple(prompt_ids), tuple(completion_ids))
        self.gradient_norms.setdefault(key)
        return key

    def run(
        self,
        model: PreTrainedModel,
        processing_class: PreTrainedTokenizerBase,
        store: RowStore | None = None,
        hidden_token_id: int | None = None,
        own_generation_config: bool = False,
        max_batch_tokens: int | None = None,
        show_progress: bool = True,
        sampling: Sampling | None = None,
        max_generation_tokens: int | None = None,
        description: str = "Evaluating",
    ) -> None:
        """
        Answers what has been asked for and not answered yet, on all processes, each of which then has all answers.

        Batches are made of all rows together and then dealt to the processes, so that a run that goes on after a crash
        computes the same batches, and so do several processes unless there are more of them than batches.

        Args:
            model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
                Causal language model, on its device: the same on all processes, or sharded over them (FSDP2, ZeRO-3).
            processing_class ([`~transformers.PreTrainedTokenizerBase`]):
                Tokenizer.
            store ([`RowStore`], *optional*):
                Where finished rows are kept.
            hidden_token_id (`int`, *optional*):
                Token that is never attended to.
            own_generation_config (`bool`, *optional*, defaults to `False`):
                Whether the model's own repetition penalty and end tokens apply.
            max_batch_tokens (`int`, *optional*):
                Size of a scoring batch in tokens: 2,048 on a CPU and 16,384 on an accelerator by default. Batches are
                halved when they do not fit in memory.
            show_progress (`bool`, *optional*, defaults to `True`):
                Whether the main process shows a progress bar over all tokens of its share.
            sampling ([`Sampling`], *optional*):
                How continuations are drawn, each of which must have a repeat. If `None`, they are greedy.
            max_generation_tokens (`int`, *optional*):
                Size of a batch of prompts that are continued, in tokens with the new ones: by default 64 times
                `max_batch_tokens`, and 131,072 at most.
            description (`str`, *optional*, defaults to `"Evaluating"`):
                What stands before the progress bar.
        """
        start = time.perf_counter()
        state = PartialState()
        sharded = is_sharded(model)
        store = store or RowStore()
        settings = generation_settings(model, processing_class, own=own_generation_config)
        pad = pad_token_id(processing_class)
        cost: Counter[str] = Counter()

        selects = can_select_from_cache(model)
        share_prompts = selects and hidden_token_id is None
        if sharded and any(len(completion_ids) == 1 for _, completion_ids in self.scores):
            share_prompts = False  # such a batch takes one pass and others two: the processes would get out of step
        if max_batch_tokens is None:
            max_batch_tokens = _MAX_BATCH_TOKENS.get(model.device.type, _MAX_BATCH_TOKENS_ON_ACCELERATOR)

        def score(batch: list[Completion]) -> list[dict[str, list]]:
            moments = batch[0] in self.with_moments
            scores, num_tokens = score_batch(model, batch, pad, hidden_token_id, moments, share_prompts)
            cost["scored_rows"] += len(batch)
            cost["scored_tokens"] += sum(map(num_scored_tokens, batch))
            cost["padded_tokens"] += num_tokens
            return scores

        def generate(batch: list[Continuation]) -> list[list[int]]:
            if selects and not sharded and not own_generation_config:
                new_ids, steps = decode_batch(model, batch, settings, sampling)
            else:
                new_ids, steps = generate_batch(model, batch, settings, hidden_token_id, sharded, sampling)
            cost["decoding_steps"] += steps
            cost["generated_tokens"] += sum(map(len, new_ids))
            return new_ids

        def differentiate(batch: list[Completion]) -> list[list[float]]:
            return [gradient_norms(model, *row) for row in batch]

        def batch_prompts(rows: list[Continuation], limit: int) -> list[list[Continuation]]:
            budget = max_generation_tokens or min(_MAX_GENERATION_TOKENS, limit * _GENERATION_FACTOR)
            return list(batch_by_length(rows, _num_tokens_with_new_ones, budget))

        batch_rows = batch_questions if share_prompts else _batch_rows
        works = []
        for moments in (False, True):
            rows = [key for key in self.scores if (key in self.with_moments) == moments]
            kind = f"score {hidden_token_id} {moments}"
            works.append(_Work(kind, rows, self.scores, num_scored_tokens, batch_rows, score))
        for limit in sorted({key[1] for key in self.generations}):
            rows = [key for key in self.generations if key[1] == limit]
            kind = f"generate {hidden_token_id} {sorted(settings.items())}" + (f" {sampling}" if sampling else "")
            works.append(_Work(kind, rows, self.generations, _num_tokens_with_new_ones, batch_prompts, generate))
        rows = list(self.gradient_norms)
        works.append(_Work("gradient norms", rows, self.gradient_norms, num_scored_tokens, _one_by_one, differentiate))
        for work in works:
            work.deal(store, state, max_batch_tokens)

        with (
            evaluation_mode(model),
            tqdm(
                total=sum(work.length(row) for work in works for batch in work.batches for row in batch),
                desc=description,
                unit=" tokens",
                unit_scale=True,
                disable=not (show_progress and state.is_main_process),
                leave=False,
            ) as bar,
        ):
            for work in works:
                own = {}
                for batch, answers in run_batches(work.batches, work.compute, halve=not sharded):
                    store.add(work.kind, batch, answers)
                    own.update(zip(batch, answers, strict=True))
                    bar.update(sum(map(work.length, batch)))
                if sharded:  # all processes must run the model equally often
                    for _ in range(work.most_batches - len(work.batches)):
                        work.compute([work.shortest])
                for answers in gather_object([own]) if state.num_processes > 1 else [own]:
                    work.answers.update(answers)
        for part in gather_object([cost]) if state.num_processes > 1 else [cost]:
            self.cost.update(part)
        self.cost["seconds"] += time.perf_counter() - start


def _num_tokens_with_new_ones(row: Continuation) -> int:
    return len(row[0]) + row[1]


def _batch_rows(rows: list[Completion], max_batch_tokens: int) -> list[list[Completion]]:
    return list(batch_by_length(rows, num_scored_tokens, max_batch_tokens))


def _one_by_one(rows: list[Completion], max_batch_tokens: int) -> list[list[Completion]]:
    return [[row] for row in rows]


@dataclass
class _Work:
    """
    One kind of work: what it depends on beside the model and a row's tokens, its rows and where their answers go, how long
    a row is, how rows make batches, and how to do a batch.
    """

    kind: str
    rows: list[tuple]
    answers: dict[tuple, Any]
    length: Callable[[tuple], int]
    batch: Callable[[list[tuple], int], list[list[tuple]]]
    compute: Callable[[list[tuple]], list[Any]]
    batches: list[list[tuple]] = field(default_factory=list)
    most_batches: int = 0
    shortest: tuple | None = None

    def deal(self, store: RowStore, state: PartialState, max_batch_tokens: int) -> None:
        """Takes what is on disk, and this process's share of the batches of the rest."""
        asked = [row for row in self.rows if self.answers[row] is None]
        found = store.finished(self.kind, asked)
        self.answers.update(found)
        if state.num_processes > 1:  # about a batch for each process at least
            max_batch_tokens = min(max_batch_tokens, -(-sum(map(self.length, asked)) // state.num_processes))
        batches = self.batch(asked, max_batch_tokens)
        batches = [[row for row in batch if row not in found] for batch in batches]
        batches = [batch for batch in batches if batch]
        self.batches = batches[state.process_index :: state.num_processes]
        self.most_batches = -(-len(batches) // state.num_processes)
        self.shortest = batches[-1][-1] if batches else None
