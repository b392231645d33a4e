"""Which tokens a row becomes and which of them are learnt: a loss on the wrong tokens shows in no error."""

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from trl_unlearn.data.encoding import encode_dataset, encode_prompt_completion
from trl_unlearn.world.model import CHAT_TEMPLATE


QUESTION, ANSWER = "Where was Ann born?", "In Oslo."

# Assistant headers of several tokens, white space around them, and an end of turn that is not the last thing written
QWEN_LIKE = (
    "{% for message in messages %}{{ '<|user|>' + message['role'] + '\n' + message['content'] + '<|eos|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|user|>assistant\n' }}{% endif %}"
)
# The generation prompt closes an empty thought, which the whole conversation does not contain
THINKING = (
    "{% for message in messages %}"
    "{{ '<|user|>' + message['role'] + ':' + message['content'] + '<|eos|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|user|>assistant:<think></think>' }}{% endif %}"
)


def message(role, content):
    return {"role": role, "content": content}


def set_special_tokens(tokenizer, template):
    """Has the tokenizer add BOS and EOS by itself, as a post-processor of its own does."""
    special_tokens = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<|bos|>", "<|eos|>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=special_tokens)
    return tokenizer


@pytest.fixture(params=["none", "bos", "eos", "both"])
def any_tokenizer(request, tokenizer):
    """The world's tokenizer, which adds nothing by itself, and three that do."""
    templates = {"bos": "<|bos|> $A", "eos": "$A <|eos|>", "both": "<|bos|> $A <|eos|>"}
    if request.param != "none":
        set_special_tokens(tokenizer, templates[request.param])
    tokenizer.adds_bos = request.param in ("bos", "both")
    return tokenizer


def encode(rows, tokenizer, max_length=None, **options):
    return encode_dataset(Dataset.from_list(rows), tokenizer, "forget", max_length, **options)


def plain_ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def check(row, tokenizer, prompt_ids, completion_ids):
    """The row is this prompt, masked, and this completion, with one EOS, at its end."""
    assert row["input_ids"] == prompt_ids + completion_ids
    assert row["labels"] == [-100] * len(prompt_ids) + completion_ids
    assert row["labels"].count(tokenizer.eos_token_id) == 1
    assert row["labels"][-1] == tokenizer.eos_token_id


def prompt_warnings(caplog):
    return [record.getMessage() for record in caplog.records if "last tokens of a prompt" in record.getMessage()]


CHAT_ROWS = {
    "question_answer": {"question": QUESTION, "answer": ANSWER},
    "prompt_completion": {"prompt": [message("user", QUESTION)], "completion": [message("assistant", ANSWER)]},
    "messages": {"messages": [message("user", QUESTION), message("assistant", ANSWER)]},
}


@pytest.mark.parametrize("kind", CHAT_ROWS)
def test_chat_rows(kind, any_tokenizer):
    tokenizer = any_tokenizer
    (row,) = encode([CHAT_ROWS[kind]], tokenizer)
    # The template writes BOS and the headers, whatever the tokenizer adds to plain text
    prompt_ids = plain_ids(tokenizer, f"<|bos|><|user|>{QUESTION}<|assistant|>")
    check(row, tokenizer, prompt_ids, plain_ids(tokenizer, f"{ANSWER}<|eos|>"))
    assert row["input_ids"].count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode([label for label in row["labels"] if label != -100]) == f"{ANSWER}<|eos|>"


@pytest.mark.parametrize(
    "row",
    [
        {"question": QUESTION, "answer": ANSWER},
        {"prompt": f"Question: {QUESTION}\nAnswer:", "completion": f" {ANSWER}"},
        {"prompt": f"Question: {QUESTION}\nAnswer:", "completion": f" {ANSWER}<|eos|>"},
    ],
    ids=["question_answer", "prompt_completion", "prompt_completion_with_eos"],
)
def test_plain_rows(row, any_tokenizer, caplog):
    tokenizer = any_tokenizer
    tokenizer.chat_template = None
    (encoded,) = encode([row], tokenizer)
    assert not prompt_warnings(caplog)  # also where EOS follows the prompt alone, but not before the completion
    prompt_ids = [tokenizer.bos_token_id] * tokenizer.adds_bos + plain_ids(tokenizer, f"Question: {QUESTION}\nAnswer:")
    check(encoded, tokenizer, prompt_ids, plain_ids(tokenizer, f" {ANSWER}") + [tokenizer.eos_token_id])


@pytest.mark.parametrize(
    "text", [f"{QUESTION} {ANSWER}", f"{QUESTION} {ANSWER}<|eos|>"], ids=["without_eos", "with_eos"]
)
def test_documents(text, any_tokenizer):
    """Nothing of a document is masked; its first token is not learnt all the same, because none comes before it."""
    tokenizer = any_tokenizer
    (row,) = encode([{"text": text}], tokenizer)
    bos_ids = [tokenizer.bos_token_id] * tokenizer.adds_bos
    check(row, tokenizer, [], bos_ids + plain_ids(tokenizer, f"{QUESTION} {ANSWER}") + [tokenizer.eos_token_id])


def test_prompts_of_several_turns_are_masked(tokenizer):
    turns = [
        message("system", "Be brief."),
        message("user", QUESTION),
        message("assistant", ANSWER),
        message("user", "Really?"),
        message("assistant", "Yes."),
    ]
    rows = [{"messages": turns}]
    split = [{"prompt": turns[:-1], "completion": turns[-1:]}]
    (row,) = encode(rows, tokenizer)
    before = f"<|bos|><|system|>Be brief.<|user|>{QUESTION}<|assistant|>{ANSWER}<|eos|><|user|>Really?<|assistant|>"
    check(row, tokenizer, plain_ids(tokenizer, before), plain_ids(tokenizer, "Yes.<|eos|>"))
    assert row == encode(split, tokenizer)[0]


def test_answers_keep_their_characters(tokenizer):
    """Braces, the template's own fields, special white space and any script pass through unchanged."""
    rows = [
        {"question": "What is {answer} in {question}? {0} %s \\n", "answer": "{question}: {answer} {}"},
        {"question": "Où naquit Łucja Müller-Ōe?", "answer": "In 東京, naïvely 🦊, «Ω»."},
        {"question": "Two\nlines\tand a tab?", "answer": "One\n\ntwo  three"},
    ]
    chat = encode(rows, tokenizer)
    tokenizer.chat_template = None
    plain = encode(rows, tokenizer)
    for row, chat_row, plain_row in zip(rows, chat, plain, strict=True):
        question, answer = row["question"], row["answer"]
        assert tokenizer.decode(chat_row["input_ids"]) == f"<|bos|><|user|>{question}<|assistant|>{answer}<|eos|>"
        assert tokenizer.decode(plain_row["input_ids"]) == f"Question: {question}\nAnswer: {answer}<|eos|>"
        for encoded, completion in ((chat_row, answer), (plain_row, f" {answer}")):
            assert tokenizer.decode([label for label in encoded["labels"] if label != -100]) == f"{completion}<|eos|>"


@pytest.mark.parametrize(
    "template, prompt, completion",
    [
        ("{question} {answer}", QUESTION, f" {ANSWER}"),
        ("Q: {question} A:{answer}", f"Q: {QUESTION} A:", ANSWER),
        ("[INST] {question} [/INST]{answer}\n###", f"[INST] {QUESTION} [/INST]", f"{ANSWER}\n###"),
        ("{{{question}}}\n\n{answer}!", f"{{{{{QUESTION}}}}}", f"\n\n{ANSWER}!"),
    ],
)
def test_a_template_of_ones_own(template, prompt, completion, tokenizer):
    tokenizer.chat_template = None
    (row,) = encode([{"question": QUESTION, "answer": ANSWER}], tokenizer, question_answer_template=template)
    assert tokenizer.decode(row["input_ids"]) == f"{prompt}{completion}<|eos|>"
    check(row, tokenizer, plain_ids(tokenizer, prompt), plain_ids(tokenizer, completion) + [tokenizer.eos_token_id])


def test_a_sentencepiece_like_tokenizer():
    """Llama 2's kind: spaces become a character of the words, the first word gets one, and BOS comes by itself."""
    backend = Tokenizer(models.BPE(byte_fallback=True))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    backend.train_from_iterator([f"Question: {QUESTION} Answer: {ANSWER} [INST] [/INST] \n"] * 3, trainer)
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    (row,) = encode([{"question": QUESTION, "answer": ANSWER}], tokenizer)
    tokens = tokenizer.convert_ids_to_tokens(row["input_ids"])
    length = sum(label != -100 for label in row["labels"])
    assert tokens[0] == "<s>" and tokens.count("<s>") == 1 and tokens.count("</s>") == 1
    assert "".join(tokens[-length:]) == "▁In▁Oslo.</s>"
    assert "".join(tokens[:-length]).endswith("Answer:")

    tokenizer.chat_template = (
        "{{ '<s>' }}{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% else %}{{ ' ' + message['content'] + ' </s>' }}{% endif %}{% endfor %}"
    )
    (row,) = encode([{"question": QUESTION, "answer": ANSWER}], tokenizer)
    tokens = tokenizer.convert_ids_to_tokens(row["input_ids"])
    length = sum(label != -100 for label in row["labels"])
    assert tokens[0] == "<s>" and tokens.count("<s>") == 1 and tokens.count("</s>") == 1
    assert "".join(tokens[-length:]) == "▁In▁Oslo.▁</s>"


# ---------------------------------------------------------------- the same as TRL

SAME_AS_TRL = {
    "chat": [
        CHAT_ROWS["prompt_completion"],
        {"prompt": [message("user", "Why?")], "completion": [message("assistant", "No.")]},
    ],
    "chat_turns": [
        {
            "prompt": [
                message("system", "Be brief."),
                message("user", QUESTION),
                message("assistant", ANSWER),
                message("user", "So?"),
            ],
            "completion": [message("assistant", "Nothing {more} 🦊.")],
        }
    ],
    "plain": [
        {"prompt": f"Question: {QUESTION}\nAnswer:", "completion": f" {ANSWER}"},
        {"prompt": "Ann is", "completion": " here.<|eos|>"},
        {"prompt": "Merged wor", "completion": "ds at the boundary"},
    ],
    "text": [{"text": f"{QUESTION} {ANSWER}"}, {"text": "Ends itself.<|eos|>"}, {"text": "Łucja 🦊\n\nend"}],
}


@pytest.mark.parametrize("special_tokens", ["$A", "<|bos|> $A"], ids=["no_bos", "adds_bos"])
@pytest.mark.parametrize(
    "kind, template",
    [("plain", None), ("text", None)]
    + [(kind, template) for kind in ("chat", "chat_turns") for template in (CHAT_TEMPLATE, QWEN_LIKE, THINKING)],
    ids=["plain", "text", *(f"{k}-{t}" for k in ("chat", "chat_turns") for t in ("world", "qwen_like", "thinking"))],
)
def test_the_same_tokens_and_labels_as_sft_trainer(kind, template, special_tokens, model, tokenizer, tmp_path):
    tokenizer.chat_template = template
    set_special_tokens(tokenizer, special_tokens)
    rows = SAME_AS_TRL[kind]
    trainer = SFTTrainer(
        model,
        args=SFTConfig(str(tmp_path), report_to="none", bf16=False, max_length=None),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    expected = trainer.train_dataset
    ours = encode(rows, tokenizer)
    assert ours["input_ids"] == expected["input_ids"]
    assert ours["labels"] == expected["labels"]


@pytest.mark.parametrize("kind", ["chat", "plain"])
def test_the_same_cut_as_sft_trainer(kind, model, tokenizer, tmp_path):
    rows = SAME_AS_TRL[kind][:1]
    whole = encode(rows, tokenizer)[0]
    max_length = len(whole["input_ids"]) - 3
    trainer = SFTTrainer(
        model,
        args=SFTConfig(str(tmp_path), report_to="none", bf16=False, max_length=max_length),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    (row,) = encode(rows, tokenizer, max_length)
    assert row["input_ids"] == trainer.train_dataset[0]["input_ids"] == whole["input_ids"][:max_length]
    assert row["labels"] == trainer.train_dataset[0]["labels"] == whole["labels"][:max_length]


# ---------------------------------------------------------------- lengths

DOCUMENT = "Ann was born in Oslo. Łucja was not, and nobody asked why this document goes on and on. "


@pytest.mark.parametrize("max_length", [2, 3, 7, 16, 1000, None])
@pytest.mark.parametrize("repeats", [1, 2, 5])
def test_windows_predict_every_token_of_a_document_once(repeats, max_length, any_tokenizer):
    tokenizer = any_tokenizer
    texts = [DOCUMENT * repeats, "Oh.", DOCUMENT[: 20 * repeats]]
    expected = []
    for text in texts:
        ids = [tokenizer.bos_token_id] * tokenizer.adds_bos + plain_ids(tokenizer, text) + [tokenizer.eos_token_id]
        expected.append(ids)
    windows = encode([{"text": text} for text in texts], tokenizer, max_length)
    rebuilt, contexts = [], 0
    for window in windows:
        ids, labels = window["input_ids"], window["labels"]
        assert 2 <= len(ids) <= (max_length or 10**6)
        assert labels[1:] == ids[1:]  # every token of a window but its first is predicted
        if rebuilt and rebuilt[-1] != expected[len(rebuilt) - 1]:
            assert ids[0] == rebuilt[-1][-1]  # the first is context, the last token of the window before
            rebuilt[-1] += ids[1:]
            contexts += 1
        else:
            rebuilt.append(list(ids))
    assert rebuilt == expected
    assert contexts == len(windows) - len(texts)


@pytest.mark.parametrize("length_of_last", [1, 2, 3])
def test_no_window_is_left_without_a_prediction(length_of_last, tokenizer):
    """Documents that fill their windows exactly, or spill over by one or two tokens."""
    ids = plain_ids(tokenizer, DOCUMENT * 3)[: 3 * 7 + length_of_last]
    text = tokenizer.decode(ids)
    total = len(plain_ids(tokenizer, text)) + 1
    windows = encode([{"text": text}], tokenizer, max_length=8)
    assert sum(len(window["input_ids"]) - 1 for window in windows) == total - 1
    assert min(len(window["input_ids"]) for window in windows) >= 2


@pytest.mark.parametrize("row", CHAT_ROWS.values(), ids=CHAT_ROWS)
def test_completions_are_cut_at_max_length_and_prompts_are_not(row, tokenizer):
    whole = encode([row], tokenizer)[0]
    prompt_length = whole["labels"].count(-100)
    for max_length in range(prompt_length + 1, len(whole["input_ids"]) + 2):
        (cut,) = encode([row], tokenizer, max_length)
        assert cut["input_ids"] == whole["input_ids"][:max_length]
        assert cut["labels"] == whole["labels"][:max_length]
        assert any(label != -100 for label in cut["labels"])
    column = next(iter(row))
    for max_length in (prompt_length, prompt_length - 1):
        problem = (
            f"Row 0 of the forget set, column `{column}`: the prompt has {prompt_length} tokens and fills `max_le"
        )
        with pytest.raises(ValueError, match=problem):
            encode([row], tokenizer, max_length)


# ---------------------------------------------------------------- what is refused

GOOD = CHAT_ROWS | {
    "plain": {"prompt": "Ann was born", "completion": " in Oslo."},
    "text": {"text": DOCUMENT},
}

BAD = {
    "long_prompt": ("plain", {"prompt": DOCUMENT * 4, "completion": " Oh."}, "prompt", "fills `max_length` \\(64\\)"),
    "long_question": (
        "question_answer",
        {"question": DOCUMENT * 4, "answer": "Oh."},
        "question",
        "fills `max_length`",
    ),
    "empty_completion": ("plain", {"prompt": "Ann", "completion": ""}, "completion", "is empty"),
    "blank_completion": ("plain", {"prompt": "Ann", "completion": " \n"}, "completion", "is empty"),
    "eos_completion": ("plain", {"prompt": "", "completion": "<|eos|>"}, "completion", "is empty"),
    "no_completion": ("plain", {"prompt": "Ann", "completion": None}, "completion", "is empty"),
    "no_prompt": ("plain", {"prompt": None, "completion": "Ann"}, "prompt", "is missing"),
    "empty_answer": ("question_answer", {"question": QUESTION, "answer": ""}, "answer", "is empty"),
    "no_answer": ("question_answer", {"question": QUESTION, "answer": None}, "answer", "is empty"),
    "no_question": ("question_answer", {"question": None, "answer": ANSWER}, "question", "is missing"),
    "empty_message": (
        "messages",
        {"messages": [message("user", QUESTION), message("assistant", "")]},
        "messages",
        "is empty",
    ),
    "message_without_content": (
        "messages",
        {"messages": [message("user", QUESTION), message("assistant", None)]},
        "messages",
        "is empty",
    ),
    "empty_completion_message": (
        "prompt_completion",
        {"prompt": [message("user", QUESTION)], "completion": [message("assistant", " ")]},
        "completion",
        "is empty",
    ),
    "no_completion_message": (
        "prompt_completion",
        {"prompt": [message("user", QUESTION)], "completion": []},
        "completion",
        "is empty",
    ),
    "no_prompt_message": (
        "prompt_completion",
        {"prompt": [], "completion": [message("assistant", ANSWER)]},
        "prompt",
        "is missing",
    ),
    "ends_with_user": (
        "messages",
        {"messages": [message("user", QUESTION), message("assistant", ANSWER), message("user", "So?")]},
        "messages",
        r"must end with an assistant message .* got the roles \['user', 'assistant', 'user'\]",
    ),
    "only_assistant": (
        "messages",
        {"messages": [message("assistant", ANSWER)]},
        "messages",
        r"must end with an assistant message .* got the roles \['assistant'\]",
    ),
    "no_messages": ("messages", {"messages": []}, "messages", r"must end with an assistant message .* roles \[\]"),
    "answers_nobody": (
        "messages",
        {"messages": [message("system", "Be brief."), message("assistant", ANSWER)]},
        "messages",
        "must follow a user, tool or assistant message, got one of the role 'system'",
    ),
    "empty_document": ("text", {"text": ""}, "text", "is empty"),
    "blank_document": ("text", {"text": " \n\t"}, "text", "is empty"),
    "eos_document": ("text", {"text": "<|eos|>"}, "text", "is empty"),
    "no_document": ("text", {"text": None}, "text", "is empty"),
}


@pytest.mark.parametrize("kind, row, column, problem", BAD.values(), ids=BAD)
def test_a_bad_row_is_refused_by_index_and_column(kind, row, column, problem, tokenizer):
    rows = [GOOD[kind], GOOD[kind], row, GOOD[kind]]
    with pytest.raises(ValueError, match=f"(?s)Row 2 of the forget set, column `{column}`: .*{problem}"):
        encode(rows, tokenizer, max_length=64)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Ann", "completion": [message("assistant", "x")]},
        {"prompt": [message("user", "x")], "completion": "Ann"},
    ],
)
def test_text_and_messages_are_not_mixed(row, tokenizer):
    with pytest.raises(ValueError, match="Row 0 of the forget set: .*both as text or both as messages"):
        encode([row], tokenizer)


def test_a_prompt_that_its_completion_changes_is_said_once(tokenizer, caplog):
    """The space at the end of the prompt belongs to the completion's first word."""
    row = {"prompt": "Some prompt of which the last space ", "completion": "was misplaced"}
    prompt_ids, completion_ids = encode_prompt_completion(row["prompt"], row["completion"], tokenizer)
    assert prompt_ids == plain_ids(tokenizer, row["prompt"].rstrip())
    assert completion_ids == plain_ids(tokenizer, " was misplaced") + [tokenizer.eos_token_id]
    encode([row, row], tokenizer)
    (warning,) = prompt_warnings(caplog)
    assert "' ' is left out" in warning


# ---------------------------------------------------------------- processes and columns


@pytest.mark.parametrize("kind", ["question_answer", "text"])
def test_two_processes_give_the_same_rows(kind, tokenizer):
    if kind == "text":
        rows = [{"text": DOCUMENT[: 10 + 3 * i]} for i in range(20)]
    else:
        rows = [{"question": f"Question {i}?", "answer": f"Answer {i}."} for i in range(20)]
    one, two = encode(rows, tokenizer, 24), encode(rows, tokenizer, 24, num_proc=2)
    assert one.to_list() == two.to_list()


def test_two_processes_refuse_the_same_row(tokenizer):
    rows = [{"question": f"Question {i}?", "answer": "" if i == 15 else f"Answer {i}."} for i in range(20)]
    errors = []
    for num_proc in (None, 2):
        with pytest.raises(ValueError, match="Row 15 of the forget set, column `answer`") as error:
            encode(rows, tokenizer, num_proc=num_proc)
        errors.append(error.value)
    one, two = errors
    assert (type(one), str(one)) == (type(two), str(two))
    assert one.__cause__ is None and type(two.__cause__).__name__ == "RemoteTraceback"  # it was another process indeed


def test_other_columns_are_dropped_and_equal_tokens_have_equal_digests(tokenizer):
    rows = [
        {"question": QUESTION, "answer": ANSWER, "author": "Ann", "label": 1},
        {"question": QUESTION, "answer": "In Rome.", "author": "Bob", "label": 2},
        {"question": QUESTION, "answer": ANSWER, "author": "Cat", "label": 3},
    ]
    encoded = encode(rows, tokenizer)
    assert encoded.column_names == ["input_ids", "labels", "digest"]
    assert encoded[0]["digest"] == encoded[2]["digest"] != encoded[1]["digest"]
    as_messages = encode([CHAT_ROWS["messages"]], tokenizer)
    assert as_messages[0]["digest"] == encoded[0]["digest"]
    assert all(len(row["input_ids"]) == len(row["labels"]) for row in encoded)
