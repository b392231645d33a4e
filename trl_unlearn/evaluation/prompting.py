"""How a question and its answer are written and tokenized for a model, by our convention or by another evaluator's."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from ..data.encoding import DEFAULT_QUESTION_ANSWER_TEMPLATE, encode_prompt_completion
from ..data.formats import fill_template
from .generate import pad_token_id


Compat = Literal["open-unlearning", "tofu"]

# What MUSE's evaluators score of a document, in tokens
_MAX_DOCUMENT_LENGTH = 2048
# What the two evaluators cut a row at, in tokens
_MAX_LENGTH = {"open-unlearning": 512, "tofu": 200}


@dataclass(frozen=True)
class Prompting:
    """
    How rows become tokens.

    Args:
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer.
        question_answer_template (`str`, *optional*):
            Text with the fields `{question}` and `{answer}`, written without the chat template. If `None`, questions and
            answers are messages where the tokenizer has a chat template, and else
            `"Question: {question}\\nAnswer: {answer}"`.
        system_prompt (`str`, *optional*):
            First message of every chat.
        chat_template_kwargs (`dict`, *optional*):
            What the chat template is given beside the messages, for example `{"date_string": "10 Apr 2025"}`.
        compat (`str`, *optional*):
            Evaluator whose tokens are wanted: `"open-unlearning"` or `"tofu"`.
    """

    processing_class: PreTrainedTokenizerBase
    question_answer_template: str | None = None
    system_prompt: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    compat: Compat | None = None

    def __post_init__(self):
        template = self.question_answer_template
        if template is not None and ("{question}" not in template or template.count("{answer}") != 1):
            raise ValueError(
                f"`question_answer_template` is {template!r}; expected a text with the fields {{question}} and {{answer}}."
            )
        if self.compat not in (None, "open-unlearning", "tofu"):
            raise ValueError(f"`compat` is {self.compat!r}; expected 'open-unlearning' or 'tofu', or None.")
        if self.system_prompt is not None and not self.is_chat:
            raise ValueError(
                "`system_prompt` is a message, but the prompts are written as text. Put it in the template."
            )

    @property
    def is_chat(self) -> bool:
        """Whether questions are asked through the chat template."""
        return (
            self.question_answer_template is None
            and self.processing_class.chat_template is not None
            and self.compat != "tofu"
        )

    @property
    def convention(self) -> Literal["exact", "open-unlearning"]:
        """The convention of the metrics that goes with `compat`."""
        return "open-unlearning" if self.compat == "open-unlearning" else "exact"

    @property
    def hidden_token_id(self) -> int | None:
        """The token that is never attended to: open-unlearning takes whatever equals the padding for padding."""
        return pad_token_id(self.processing_class) if self.compat == "open-unlearning" else None

    @property
    def template(self) -> str:
        """The text around questions and answers where they are no messages."""
        return self.question_answer_template or DEFAULT_QUESTION_ANSWER_TEMPLATE

    def encode_question(self, question: str, answer: str) -> tuple[list[int], list[int]]:
        """Token ids of a question as a prompt, and of an answer to it as a completion."""
        if self.is_chat:
            return self.encode([{"role": "user", "content": question}], [{"role": "assistant", "content": answer}])
        if self.compat is None:
            return self.encode(*fill_template(question, answer, self.template))
        before, after = self.template.split("{answer}")
        return self.encode(before.replace("{question}", question), answer + after)

    def encode(self, prompt: str | list[dict], completion: str | list[dict]) -> tuple[list[int], list[int]]:
        """Token ids of a prompt and its completion, both text or both messages."""
        if self.system_prompt is not None and not isinstance(prompt, str):
            prompt = [{"role": "system", "content": self.system_prompt}, *prompt]
        if self.compat is None:
            return encode_prompt_completion(prompt, completion, self.processing_class, self.chat_template_kwargs)
        return self._encode_as_they_do(prompt, completion)

    def encode_document(self, text: str) -> tuple[list[int], list[int]]:
        """Token ids of a document: BOS, or else the first token, which nothing predicts, and the rest without an EOS."""
        ids = self.processing_class(text)["input_ids"]
        if self.compat == "open-unlearning":  # for which a document continues the empty text, and is cut behind that
            start = len(self.processing_class("")["input_ids"])
            ids = ids[: start + _MAX_DOCUMENT_LENGTH]
            return ids[: max(start, 1)], ids[max(start, 1) :]
        return ids[:1], ids[1:_MAX_DOCUMENT_LENGTH]

    def without_end(self, completion_ids: list[int], is_document: bool = False) -> list[int]:
        """
        A completion without the tokens that end it: EOS or the template's end of turn.

        They end every answer and say nothing of this one. open-unlearning leaves out the last token, whatever it is, and
        of documents too, which end in nothing.
        """
        if self.compat == "open-unlearning":
            return completion_ids[:-1]
        if is_document:
            return completion_ids
        end = len(completion_ids)
        while end > 0 and (
            completion_ids[end - 1] in self._special_ids
            or self.processing_class.decode(completion_ids[end - 1 : end]).strip() == ""
        ):
            end -= 1
        return completion_ids[:end]

    @cached_property
    def _special_ids(self) -> set[int]:
        return set(self.processing_class.all_special_ids)

    def _encode_as_they_do(self, prompt, completion) -> tuple[list[int], list[int]]:
        tokenizer, eos_token_id = self.processing_class, self.processing_class.eos_token_id
        if isinstance(prompt, str):
            # TOFU puts EOS behind what it has cut; open-unlearning cuts first as well
            limit = {"max_length": _MAX_LENGTH[self.compat], "truncation": True}
            prompt_ids = tokenizer(prompt, **limit)["input_ids"]
            ids = tokenizer(prompt + completion, **limit)["input_ids"]
            ends = len(ids) == limit["max_length"] if self.compat == "tofu" else ids[-1] == eos_token_id
        else:
            options = {"tokenize": True, "return_dict": False, **(self.chat_template_kwargs or {})}
            prompt_ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, **options)
            ids = tokenizer.apply_chat_template(prompt + completion, add_generation_prompt=False, **options)
            ends = ids[-1] == eos_token_id
        ids = list(ids) if ends else [*ids, eos_token_id]
        # Their prompt is as many tokens as it has by itself, whether or not these are the first of the whole
        return ids[: len(prompt_ids)], ids[len(prompt_ids) :]
