"""Alternates by a real small model: counted, drawn again, accepted by the trainer; and what is wrong with the input."""

import json

import pytest
from datasets import Dataset

from trl_unlearn import AltPOConfig, AltPOTrainer, MissingAlternatesError, generate_alternates, idk_alternates
from trl_unlearn.alternates.filters import reason_to_reject
from trl_unlearn.alternates.idk import IDK_ANSWERS, read_idk_answers


# This model has not learnt to follow an instruction nor to end its reply; cut at a full stop, what it writes passes.
OPTIONS = {"num_alternates": 2, "max_new_tokens": 32, "stop_strings": ["."], "max_rounds": 30, "show_progress": False}


@pytest.fixture
def forget(forget_rows):
    return forget_rows.select(range(6)).remove_columns("alternates")


def in_format(forget, kind):
    rows = []
    for row in forget:
        user = [{"role": "user", "content": row["question"]}]
        assistant = [{"role": "assistant", "content": row["answer"]}]
        rows.append(
            {
                "question_answer": {"question": row["question"], "answer": row["answer"]},
                "text prompts": {"prompt": row["question"], "completion": f" {row['answer']}"},
                "prompts": {"prompt": user, "completion": assistant},
                "messages": {"messages": [{"role": "system", "content": "Be brief."}, *user, *assistant]},
            }[kind]
        )
    return Dataset.from_list(rows)


@pytest.mark.parametrize("kind", ["question_answer", "text prompts", "prompts", "messages"])
def test_every_format_becomes_a_set_that_the_trainer_takes(kind, forget, retain_rows, model, tokenizer, tmp_path):
    dataset = in_format(forget, kind)
    made, report = generate_alternates(model, tokenizer, dataset, **OPTIONS)
    assert made.column_names == [*dataset.column_names, "alternates"]
    assert made.remove_columns("alternates")[:] == dataset[:]
    for row, alternates in zip(forget, made["alternates"], strict=True):
        assert len(alternates) == 2
        # a text completion keeps the space before it, without which it would have other tokens
        assert all(text.startswith(" ") == (kind == "text prompts") for text in alternates)
        for number, text in enumerate(alternates):
            kept = [other.strip() for other in alternates[:number]]
            assert reason_to_reject(text, row["question"], row["answer"], kept) is None
            assert "." not in text
    assert report["kept"] == 12 and report["samples"] == 12 + sum(report["rejected"].values())
    # the same request, whatever the format
    expected = generate_alternates(model, tokenizer, forget, **OPTIONS)[0]["alternates"][:]
    assert [[text.strip() for text in texts] for texts in made["alternates"]] == expected
    trainer = AltPOTrainer(
        model,
        args=AltPOConfig(str(tmp_path), max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=1,
                    report_to="none", use_cpu=True, bf16=False),
        train_dataset=made,
        retain_dataset=retain_rows,
        processing_class=tokenizer,
    )  # fmt: skip
    assert len(trainer.train_dataset) == 12
    trainer.train()


def test_batches_do_not_change_the_texts_and_seeds_do(forget, model, tokenizer):
    made = [
        generate_alternates(model, tokenizer, forget, **OPTIONS, max_batch_tokens=size, seed=seed)[0]["alternates"][:]
        for size, seed in ((1, 0), (500, 0), (None, 0), (None, 1))
    ]
    assert made[0] == made[1] == made[2] != made[3]
    # nor do the other rows
    alone, _ = generate_alternates(model, tokenizer, forget.select([4]), **OPTIONS)
    assert alone["alternates"][0] == made[0][4]


def test_the_models_own_generation_settings_are_not_used(forget, model, tokenizer):
    expected, _ = generate_alternates(model, tokenizer, forget, **OPTIONS)
    model.generation_config.update(do_sample=True, temperature=0.1, top_k=1, top_p=0.1, repetition_penalty=9.0)
    assert generate_alternates(model, tokenizer, forget, **OPTIONS)[0]["alternates"][:] == expected["alternates"][:]


def test_rejected_samples_are_drawn_again_up_to_a_bound(forget, model, tokenizer):
    """A second round draws repeats of its own; with the bound at one round, what it lacks is missing."""
    options = OPTIONS | {"num_alternates": 4, "max_fact_recall": 0.0}  # not one word of the answer
    made, report = generate_alternates(model, tokenizer, forget, **options)
    assert report["rounds"] > 1
    assert sum(report["rejected"].values()) == report["samples"] - 24 > 0
    with pytest.raises(MissingAlternatesError) as caught:
        generate_alternates(model, tokenizer, forget, **options | {"max_rounds": 1})
    error = caught.value
    assert error.report["samples"] == 24
    missing = [index for index, texts in enumerate(error.dataset["alternates"]) if len(texts) < 4]
    assert missing
    for index, texts in enumerate(error.dataset["alternates"]):
        assert made["alternates"][index][: len(texts)] == texts
        assert (f"{index} ({len(texts)})" in str(error)) == (index in missing)
    assert f"{len(missing)} of 6 rows have fewer than 4 alternates after round 1" in str(error)


def test_a_model_that_does_not_follow_says_so_and_may_be_filled_up(forget, model, tokenizer):
    options = OPTIONS | {"stop_strings": [], "max_rounds": 2, "max_new_tokens": 21}
    with pytest.raises(
        MissingAlternatesError, match="rejected: .* no end within the limit of tokens.* take a model"
    ) as caught:
        generate_alternates(model, tokenizer, forget, **options)
    report = caught.value.report
    assert report["rejected"]["unfinished"] == max(report["rejected"].values()) > report["samples"] / 4
    assert report["cut"] == 0
    filled, report = generate_alternates(model, tokenizer, forget, **options, fill_with_idk=True)
    assert report["filled"] == 12 - report["kept"] > 0
    texts = [text for texts in filled["alternates"] for text in texts]
    assert len(texts) == 12 and sum(text in IDK_ANSWERS for text in texts) == report["filled"]


def test_finished_samples_are_not_drawn_again(forget, model, tokenizer, tmp_path):
    made, report = generate_alternates(model, tokenizer, forget, **OPTIONS, cache_dir=tmp_path)
    assert report["cost"]["generated_tokens"] > 0
    again, report_again = generate_alternates(model, tokenizer, forget, **OPTIONS, cache_dir=tmp_path)
    assert again["alternates"][:] == made["alternates"][:]
    assert report_again["cost"].get("generated_tokens", 0) == 0
    assert {**report_again, "cost": None} == {**report, "cost": None}
    # other settings are other samples, other filters are not
    for change, is_new in (({"temperature": 0.7}, True), ({"seed": 1}, True), ({"max_similarity": 0.8}, False)):
        _, other = generate_alternates(model, tokenizer, forget, **OPTIONS, **change, cache_dir=tmp_path)
        assert (other["cost"].get("generated_tokens", 0) > 0) == is_new, change
    _, fresh = generate_alternates(model, tokenizer, forget, **OPTIONS, cache_dir=tmp_path, overwrite=True)
    assert fresh["cost"]["generated_tokens"] == report["cost"]["generated_tokens"]


def test_idk_answers_differ_within_a_row_and_belong_to_it(forget, tmp_path):
    assert len(set(IDK_ANSWERS)) >= 40
    made, report = idk_alternates(forget, num_alternates=7, seed=2)
    assert all(len(set(texts)) == 7 and set(texts) <= set(IDK_ANSWERS) for texts in made["alternates"])
    assert len({tuple(texts) for texts in made["alternates"]}) == 6
    assert report["kept"] == 42
    alone, _ = idk_alternates(forget.select([3]), num_alternates=4, seed=2)
    assert alone["alternates"][0] == made["alternates"][3][:4]
    assert idk_alternates(forget, 7, seed=3)[0]["alternates"][:] != made["alternates"][:]

    path = tmp_path / "answers.txt"
    path.write_text("Pass.\n\n  Next, please. \n", encoding="utf-8")
    own, _ = idk_alternates(forget, 2, answers=read_idk_answers(path))
    assert all(set(texts) == {"Pass.", "Next, please."} for texts in own["alternates"])
    with pytest.raises(ValueError, match="There are 2 different answers .* row 0 takes 3"):
        idk_alternates(forget, 3, answers=read_idk_answers(path))
    path.write_text("\n")
    with pytest.raises(ValueError, match="is empty; expected an answer a line"):
        read_idk_answers(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_alternates": 0}, "`num_alternates` is 0; expected 1 or more"),
        ({"max_rounds": 0}, "`max_rounds` is 0"),
        ({"max_new_tokens": 0}, "`max_new_tokens` is 0"),
        (
            {"max_new_tokens": 3},
            r"`max_new_tokens` is 3, and 6 of the 6 answers are longer .* Give `max_new_tokens` \d+",
        ),
        ({"max_new_tokens": 400}, "Row 0 of the forget set: the request .* longer than the 512 that the model"),
        ({"temperature": 0.0}, "`temperature` is 0.0"),
        ({"instruction": "Lie about {question}"}, "`instruction` is 'Lie about .*expected 'short' or 'long'"),
        ({"examples": [{"question": "Who?"}]}, "Example 0: `answer` is None; expected a text"),
        ({"question_answer_template": "{question}"}, "`question_answer_template` is '{question}'"),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_drawn(options, message, forget, model, tokenizer):
    with pytest.raises(ValueError, match=message):
        generate_alternates(model, tokenizer, forget, **OPTIONS | options)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "The forget set is empty"),
        ([{"question": "Who?", "reply": "I."}], r"The forget set has the columns .*'reply'.* Accepted are"),
        ([{"text": "A document."}], "The forget set has `text` rows .documents.. An alternate is another answer"),
        ([{"question": "Who?", "answer": "I."}, {"question": "Who?", "answer": " "}], "Row 1 .* column `answer`"),
    ],
)
def test_rows_without_question_and_answer_are_refused(rows, message, model, tokenizer):
    dataset = Dataset.from_list(rows)
    with pytest.raises(ValueError, match=message):
        generate_alternates(model, tokenizer, dataset, **OPTIONS)
    with pytest.raises(ValueError, match=message):
        idk_alternates(dataset)


def test_a_base_model_needs_a_template(forget, model, tokenizer):
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template, .* `question_answer_template`, a text with the fields"):
        generate_alternates(model, tokenizer, forget, **OPTIONS)
    template = "Question: {question}\nAnswer: {answer}"
    made, report = generate_alternates(model, tokenizer, forget, **OPTIONS, question_answer_template=template)
    assert report["settings"]["prompt"] == template
    assert all(len(texts) == 2 for texts in made["alternates"])
    json.dumps(report)
