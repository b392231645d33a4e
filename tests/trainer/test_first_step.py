"""What the trainers log and differentiate equals a computation with `transformers` alone."""

import math

import pytest
import torch
from datasets import Dataset
from factory import make_trainer
from torch.nn.functional import kl_div, log_softmax, logsigmoid
from transformers import AutoModelForCausalLM

from trl_unlearn import UnlearningConfig, UnlearningTrainer


def make_first_step(
    method, model, tokenizer, forget, retain, tmp_path, ref_model=None, peft_config=None, collator=None, **options
):
    """A trainer whose first step sees all forget and all retain rows, so that their pairing does not matter."""
    batch_size = len(forget) * (len(forget["alternates"][0]) if method == "altpo" else 1)
    return make_trainer(
        method,
        model,
        tmp_path,
        {"per_device_train_batch_size": batch_size, "max_steps": 1, **options},
        ref_model=ref_model,
        data_collator=collator,
        train_dataset=forget,
        retain_dataset=retain.select(range(batch_size)),
        processing_class=tokenizer,
        peft_config=peft_config,
    )


def row_logits(model, tokenizer, question, answer):
    """Logits and labels of one unpadded row, tokenized here from the template or the plain text."""
    if tokenizer.chat_template is not None:
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        prompt = tokenizer.apply_chat_template(messages[:1], add_generation_prompt=True, tokenize=False)
        ids = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False), add_special_tokens=False)["input_ids"]
        prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    else:
        prompt_ids = tokenizer(f"Question: {question}\nAnswer:")["input_ids"]
        ids = prompt_ids + tokenizer(f" {answer}")["input_ids"] + [tokenizer.eos_token_id]
    logits = model(torch.tensor([ids])).logits[0].float()
    return logits, torch.tensor([-100] * len(prompt_ids) + ids[len(prompt_ids) :])


def row_logps(model, tokenizer, question, answer):
    logits, labels = row_logits(model, tokenizer, question, answer)
    predicted = labels[1:] != -100
    token_logps = log_softmax(logits[:-1], -1)[predicted].gather(-1, labels[1:][predicted][:, None])
    return token_logps.sum(), predicted.sum()


def independent_losses(method, model, reference, tokenizer, forget, retain, beta, retain_loss_type):
    """Forget and retain loss, row by row, without padding, batches or masks."""
    forget_losses = []
    for row in forget:
        logps, length = row_logps(model, tokenizer, row["question"], row["answer"])
        ref_logps, _ = row_logps(reference, tokenizer, row["question"], row["answer"])
        if method == "npo":
            forget_losses.append(-2 / beta * logsigmoid(-beta * (logps - ref_logps)))
        elif method == "simnpo":
            forget_losses.append(-2 / beta * logsigmoid(-beta * logps / length))
        else:
            for alternate in row["alternates"]:
                alt, _ = row_logps(model, tokenizer, row["question"], alternate)
                ref_alt, _ = row_logps(reference, tokenizer, row["question"], alternate)
                forget_losses.append(-2 / beta * logsigmoid(beta * ((alt - ref_alt) - (logps - ref_logps))))
    sums, counts = 0.0, 0
    for row in retain:
        logits, labels = row_logits(model, tokenizer, row["question"], row["answer"])
        predicted = labels[1:] != -100
        if retain_loss_type == "nll":
            sums = sums - row_logps(model, tokenizer, row["question"], row["answer"])[0]
        else:
            ref_logits, _ = row_logits(reference, tokenizer, row["question"], row["answer"])
            sums = sums + kl_div(
                log_softmax(logits[:-1][predicted], -1),
                log_softmax(ref_logits[:-1][predicted], -1),
                reduction="sum",
                log_target=True,
            )
        counts = counts + predicted.sum()
    return torch.stack(forget_losses).mean(), sums / counts


class LeftPadding:
    """A user's own collator that pads on the left and gives positions."""

    def __init__(self, pad_token_id):
        self.pad_token_id = pad_token_id

    def __call__(self, rows):
        length = max(len(row["input_ids"]) for row in rows)
        batch = {"input_ids": [], "labels": [], "attention_mask": [], "position_ids": []}
        for row in rows:
            padding = length - len(row["input_ids"])
            batch["input_ids"].append([self.pad_token_id] * padding + row["input_ids"])
            batch["labels"].append([-100] * padding + row["labels"])
            batch["attention_mask"].append([0] * padding + [1] * len(row["input_ids"]))
            batch["position_ids"].append([0] * padding + list(range(len(row["input_ids"]))))
        return {key: torch.tensor(value) for key, value in batch.items()}


@pytest.fixture
def other_model(model_dir):
    """A reference that differs from the model, so that a mix-up cannot go unseen."""
    reference = AutoModelForCausalLM.from_pretrained(model_dir)
    generator = torch.Generator().manual_seed(5)
    for parameter in reference.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return reference


def loss_and_gradients(trainer):
    """Of all rows in one batch."""
    batch = trainer.data_collator([trainer.train_dataset[(i, i)] for i in range(len(trainer.train_dataset))])
    trainer.model.zero_grad()
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss, {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("chat", [True, False], ids=["chat", "plain"])
@pytest.mark.parametrize("padding", ["right", "left", "free"])
@pytest.mark.parametrize("precompute", [True, False], ids=["precomputed", "resident"])
@pytest.mark.parametrize("method", ["npo", "simnpo", "altpo"])
def test_first_logged_losses(
    method, precompute, padding, chat, model, other_model, tokenizer, forget_rows, retain_rows, tmp_path
):
    if not chat:
        tokenizer.chat_template = None
    forget, retain = forget_rows.select(range(3)), retain_rows.select(range(15))
    trainer = make_first_step(
        method,
        model,
        tokenizer,
        forget,
        retain,
        tmp_path,
        ref_model=other_model if method != "simnpo" else None,
        collator=LeftPadding(tokenizer.pad_token_id) if padding == "left" else None,
        padding_free=padding == "free",
        precompute_ref_log_probs=precompute,
        learning_rate=0.0,
    )
    trainer.train()
    logs = trainer.state.log_history[0]
    with torch.no_grad():
        expected_forget, expected_retain = independent_losses(
            method, model, other_model, tokenizer, forget, retain.select(range(len(trainer.train_dataset))), 0.3, "nll"
        )
    assert logs["forget_loss"] == pytest.approx(expected_forget.item(), rel=1e-5)
    assert logs["retain_loss"] == pytest.approx(expected_retain.item(), rel=1e-5)
    weight = trainer.args.forget_weight
    assert logs["loss"] == pytest.approx(weight * logs["forget_loss"] + logs["retain_loss"], rel=1e-5)


@pytest.mark.parametrize("retain_loss_type", ["nll", "kl"])
@pytest.mark.parametrize("precompute", [True, False], ids=["precomputed", "resident"])
@pytest.mark.parametrize("adapter", [None, "new", "given"])
@pytest.mark.parametrize("method", ["npo", "simnpo", "altpo"])
def test_gradients_and_losses_after_a_step(
    method,
    adapter,
    precompute,
    retain_loss_type,
    model,
    model_dir,
    tokenizer,
    lora_config,
    forget_rows,
    retain_rows,
    tmp_path,
):
    """After some steps model and reference differ: the losses and all gradients are compared there."""
    from peft import get_peft_model

    forget, retain = forget_rows.select(range(2)), retain_rows.select(range(10))
    reference = AutoModelForCausalLM.from_pretrained(model_dir)
    if adapter == "given":
        model, reference = get_peft_model(model, lora_config), get_peft_model(reference, lora_config)
        generator = torch.Generator().manual_seed(3)
        for (name, parameter), other in zip(model.named_parameters(), reference.parameters(), strict=True):
            if "lora_" in name:
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
            other.data.copy_(parameter.data)
    trainer = make_first_step(
        method,
        model,
        tokenizer,
        forget,
        retain,
        tmp_path,
        peft_config=lora_config if adapter == "new" else None,
        precompute_ref_log_probs=precompute,
        retain_loss_type=retain_loss_type,
        max_steps=3,
        learning_rate=1e-2,
        warmup_epochs=0.0,
    )
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    for name, parameter in trainer.model.named_parameters():
        trained = "lora_" in name and ".ref." not in name if adapter else True
        assert torch.equal(parameter, before[name]) is not trained, name

    trained_model = trainer.model
    loss, gradients = loss_and_gradients(trainer)
    trained_model.zero_grad()
    expected_forget, expected_retain = independent_losses(
        method,
        trained_model,
        reference,
        tokenizer,
        forget,
        retain.select(range(len(trainer.train_dataset))),
        0.3,
        retain_loss_type,
    )
    expected = trainer.args.forget_weight * expected_forget + expected_retain
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == {
        n for n, p in trained_model.named_parameters() if p.grad is not None and p.requires_grad
    }
    for name, parameter in trained_model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(
                gradients[name], parameter.grad, rtol=1e-3, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("method", ["npo", "altpo"])
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("precompute", [True, False], ids=["precomputed", "resident"])
def test_training_starts_at_two_over_beta_log_two(
    method, adapter, precompute, model, tokenizer, lora_config, forget_rows, retain_rows, tmp_path
):
    trainer = make_first_step(
        method,
        model,
        tokenizer,
        forget_rows.select(range(3)),
        retain_rows,
        tmp_path,
        peft_config=lora_config if adapter else None,
        precompute_ref_log_probs=precompute,
    )
    trainer.train()
    logs = trainer.state.log_history[0]
    assert logs["forget_loss"] == pytest.approx(2 / 0.3 * math.log(2), rel=1e-6)
    assert logs["rewards/forget"] == pytest.approx(0, abs=1e-5)
    assert logs["forget_weights"] == pytest.approx(1, abs=1e-5)


def test_kl_all_positions_is_the_authors_average(model, other_model, tokenizer, forget_rows, retain_rows, tmp_path):
    forget = forget_rows.select(range(4))
    trainer = make_first_step(
        "npo",
        model,
        tokenizer,
        forget,
        retain_rows,
        tmp_path,
        ref_model=other_model,
        retain_loss_type="kl_all_positions",
    )
    batch = trainer.data_collator([trainer.train_dataset[(i, i)] for i in range(4)])
    trainer.model.train()
    trainer.compute_loss(trainer.model, batch)
    retain_loss = trainer._pop_metrics("train")["retain_loss"]
    ids, mask = batch["input_ids"][4:], batch["attention_mask"][4:]
    with torch.no_grad():
        logps = [log_softmax(m(ids, attention_mask=mask).logits, -1).flatten(0, 1) for m in (model, other_model)]
    expected = kl_div(*logps, reduction="batchmean", log_target=True)
    assert retain_loss == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("method", ["npo", "simnpo", "altpo"])
def test_rows_below_the_floor_are_not_pushed(method, model, tokenizer, forget_rows, retain_rows, tmp_path):
    """The loss is the sum over the other rows, divided by all; the first step is that of a run in which they weigh nothing."""
    forget = forget_rows.select(range(4))
    with torch.no_grad():
        scores = [row_logps(model, tokenizer, row["question"], row["answer"]) for row in forget]
    probabilities = torch.stack([logps / length for logps, length in scores]).exp()
    floor = float(probabilities.sort().values[1:3].mean())  # two of four rows are forgotten
    options = {"learning_rate": 0.0, "retain_weight": 0.0, "beta": 0.5}
    arguments = (method, model, tokenizer, forget, retain_rows, tmp_path)
    trainer = make_first_step(*arguments, forget_floor=floor, **options)
    loss, gradients = loss_and_gradients(trainer)
    assert trainer._pop_metrics("train")["forgotten"] == 0.5
    is_pushed = probabilities > floor
    pushed = forget.select(torch.nonzero(is_pushed).flatten().tolist())
    alone = make_first_step(method, model, tokenizer, pushed, retain_rows, tmp_path, **options)
    loss_alone, gradients_alone = loss_and_gradients(alone)
    assert loss.item() == pytest.approx(loss_alone.item() / 2, rel=1e-5)
    gradient, alone = (torch.cat([g.flatten() for g in of.values()]) for of in (gradients, gradients_alone))
    assert (gradient - alone / 2).norm() < 1e-4 * gradient.norm()


def test_gradient_ascent_and_graddiff_average_over_tokens(model, tokenizer, forget_rows, retain_rows, tmp_path):
    forget = forget_rows.select(range(4))
    trainer = make_first_step(
        "npo", model, tokenizer, forget, retain_rows, tmp_path, forget_loss_type="grad_ascent", learning_rate=0.0
    )
    trainer.train()
    with torch.no_grad():
        scores = [row_logps(model, tokenizer, row["question"], row["answer"]) for row in forget]
    expected = sum(score[0] for score in scores) / sum(score[1] for score in scores)
    assert trainer.state.log_history[0]["forget_loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert trainer.ref_model is None


def test_messages_prompt_completion_and_text_rows_train_alike(model, tokenizer, forget_rows, retain_rows, tmp_path):
    """The same content in three formats gives the same first loss; plain documents give the loss of all their tokens."""
    questions = forget_rows.select(range(4)).select_columns(["question", "answer"])
    formats = {
        "question_answer": questions,
        "prompt_completion": Dataset.from_list(
            [
                {
                    "prompt": [{"role": "user", "content": row["question"]}],
                    "completion": [{"role": "assistant", "content": row["answer"]}],
                }
                for row in questions
            ]
        ),
        "messages": Dataset.from_list(
            [
                {
                    "messages": [
                        {"role": "user", "content": row["question"]},
                        {"role": "assistant", "content": row["answer"]},
                    ]
                }
                for row in questions
            ]
        ),
        "text": Dataset.from_list(
            [
                {
                    "text": tokenizer.apply_chat_template(
                        [
                            {"role": "user", "content": row["question"]},
                            {"role": "assistant", "content": row["answer"]},
                        ],
                        tokenize=False,
                    )
                }
                for row in questions
            ]
        ),
    }
    losses = {}
    for name, forget in formats.items():
        trainer = make_first_step("simnpo", model, tokenizer, forget, retain_rows, tmp_path, learning_rate=0.0)
        trainer.train()
        losses[name] = trainer.state.log_history[0]["forget_loss"]
    assert losses["question_answer"] == losses["prompt_completion"] == losses["messages"]
    with torch.no_grad():
        expected = []
        for row in formats["text"]:
            ids = torch.tensor(tokenizer(row["text"], add_special_tokens=False)["input_ids"])
            logps = log_softmax(model(ids[None]).logits[0, :-1].float(), -1).gather(-1, ids[1:, None])
            expected.append(-2 / 0.3 * logsigmoid(-0.3 * logps.mean()))
    assert losses["text"] == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)


def architecture(name, vocab_size):
    """Small models of the families that put a factor or a bound between LM head and softmax, and one that does not."""
    import transformers

    sizes = {"vocab_size": vocab_size, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": None, "initializer_range": 0.2}
    options = {
        "Llama": {},
        "Gemma2": {"final_logit_softcapping": 2.0, "head_dim": 16, "attn_implementation": "eager"},
        "Granite": {"logits_scaling": 3.0},
        "Cohere": {"logit_scale": 0.3},
    }[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**sizes, **options)
    return getattr(transformers, f"{name}ForCausalLM")(config)


@pytest.mark.parametrize("name", ["Llama", "Gemma2", "Granite", "Cohere"])
@pytest.mark.parametrize("retain_loss_type", ["nll", "kl"])
def test_losses_of_other_architectures(name, retain_loss_type, tokenizer, forget_rows, retain_rows, tmp_path):
    model, reference = architecture(name, len(tokenizer)), architecture(name, len(tokenizer))
    generator = torch.Generator().manual_seed(5)
    for parameter in reference.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    forget, retain = forget_rows.select(range(3)), retain_rows.select(range(3))
    trainer = make_first_step(
        "npo",
        model,
        tokenizer,
        forget,
        retain,
        tmp_path,
        reference,
        retain_loss_type=retain_loss_type,
        learning_rate=0.0,
    )
    trainer.train()
    logs = trainer.state.log_history[0]
    with torch.no_grad():
        expected = independent_losses(
            "npo", model.eval(), reference.eval(), tokenizer, forget, retain, 0.3, retain_loss_type
        )
    assert [logs["forget_loss"], logs["retain_loss"]] == pytest.approx([loss.item() for loss in expected], rel=1e-5)
    assert expected[1] > 1e-3


@pytest.mark.parametrize(
    ("retain_loss_type", "disable_dropout"), [("nll", True), ("kl", False), ("kl_all_positions", True)]
)
def test_optimizer_batch_normalization_is_exact(
    retain_loss_type, disable_dropout, model_dir, other_model, tokenizer, forget_rows, retain_rows, tmp_path
):
    """One step over the same eight pairs, at once and one by one, moves the weights alike."""
    weights = []
    for rows, steps in ((8, 1), (1, 8)):
        trainer = make_first_step(
            "npo",
            AutoModelForCausalLM.from_pretrained(model_dir),
            tokenizer,
            forget_rows.select(range(8)),
            retain_rows,
            tmp_path,
            other_model,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=steps,
            retain_loss_type=retain_loss_type,
            retain_normalization="optimizer_batch",
            disable_dropout=disable_dropout,
            pad_to_multiple_of=64,  # all positions count in "kl_all_positions", and so does their number
            optim="sgd",
            warmup_epochs=0.0,
            learning_rate=0.1,
        )
        trainer.train()
        weights.append(trainer.model.state_dict())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-6)


def test_a_method_must_say_its_forget_loss(model, tokenizer, forget_rows, tmp_path):
    trainer = UnlearningTrainer(
        model,
        args=UnlearningConfig(str(tmp_path), retain_weight=0.0, disable_dropout=False, report_to="none"),
        train_dataset=forget_rows,
        processing_class=tokenizer,
    )
    with pytest.raises(NotImplementedError, match="UnlearningTrainer.*forget_loss"):
        trainer.train()
