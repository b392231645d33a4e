"""What a ledger loads and merges: the base and the changes of the adapters in use, no more and no less."""

import json
import shutil

import pytest
import torch
from command_line import weights_of
from datasets import load_dataset
from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import AutoModelForCausalLM

from trl_unlearn import cli, load_ledger, load_unlearned
from trl_unlearn.hub.results import load_results


TEXTS = ("Where was Aldo born?", "They play the violin.", "Which town does Dalia come from?")


@torch.no_grad()
def logits_of(model, tokenizer) -> torch.Tensor:
    return torch.cat([model(**tokenizer(text, return_tensors="pt")).logits[0] for text in TEXTS])


def weights_with(model_dir, ledger, numbers) -> dict[str, torch.Tensor]:
    """The weights of the base with these adapters merged one after the other, by PEFT alone."""
    model = AutoModelForCausalLM.from_pretrained(model_dir)
    for number in numbers:
        model = PeftModel.from_pretrained(model, ledger / f"request-{number:03d}").merge_and_unload()
    return model.state_dict()


def assert_same_weights(model, expected) -> None:
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, atol=1e-6, rtol=0)


def change(weights, others) -> float:
    return max((weights[name] - others[name]).abs().max().item() for name in weights)


def test_adapters_add_up(own_ledger, model_dir):
    """Of different ranks, scalings and modules."""
    model, tokenizer = load_ledger(own_ledger)
    base = weights_with(model_dir, own_ledger, [])
    expected = weights_with(model_dir, own_ledger, [1, 2, 3])
    for numbers in ([1, 2], [1, 3], [2, 3]):
        assert change(weights_with(model_dir, own_ledger, numbers), expected) > 1e-3
    assert change(base, expected) > 1e-3
    assert_same_weights(model, expected)
    assert not model.training and tokenizer.chat_template is not None
    unmerged, _ = load_ledger(own_ledger, merge=False)
    assert isinstance(unmerged, PeftModel) and unmerged.active_peft_config.r == 4 + 2 + 4
    torch.testing.assert_close(logits_of(unmerged, tokenizer), logits_of(model, tokenizer), atol=1e-5, rtol=0)


def test_each_request_was_trained_on_the_ones_before(own_ledger):
    """What the first request was measured at after its training is where the second one starts from."""
    requests = json.loads((own_ledger / "unlearn_ledger.json").read_text())["requests"]
    for earlier, later in zip(requests, requests[1:], strict=False):
        for metric in ("retain_probability", "model_utility"):
            after, before = (
                request["results"][moment][metric] for request, moment in ((earlier, "after"), (later, "before"))
            )
            assert before == pytest.approx(after, rel=1e-5), metric
        assert earlier["results"]["after"] != later["results"]["after"]


def test_undone_requests_are_as_if_never_applied(own_ledger, copy_of, ledger_command, model_dir):
    ledger = copy_of(own_ledger)
    output = ledger_command("undo", "2", "--ledger", ledger)
    assert "Undone: request 2 ('customer 2')." in output and "other requests (1, 3)" in output
    assert_same_weights(load_ledger(ledger)[0], weights_with(model_dir, ledger, [1, 3]))
    # the last one: exactly what was there before it was trained
    ledger_command("undo", "3", "--ledger", ledger)
    model, _ = load_ledger(ledger)
    assert_same_weights(model, weights_with(model_dir, ledger, [1]))
    ledger_command("undo", "1", "--ledger", ledger)
    assert change(load_ledger(ledger)[0].state_dict(), weights_with(model_dir, ledger, [])) == 0
    assert "is undone already" in ledger_command("undo", "1", "--ledger", ledger, fails=True)
    assert "There is no request 4" in ledger_command("undo", "4", "--ledger", ledger, fails=True)
    assert "there is nothing to merge" in ledger_command("merge", ledger / "out", "--ledger", ledger, fails=True)


def test_continued_adapters_replace_what_they_continue(continued_ledger, copy_of, ledger_command, model_dir):
    requests = json.loads((continued_ledger / "unlearn_ledger.json").read_text())["requests"]
    assert [(request["mode"], request["continues"]) for request in requests] == [
        ("own", None),
        ("continued", 1),
        ("own", None),
    ]
    ledger = copy_of(continued_ledger)
    # the second started as the first, and moved on from there
    first, second = (weights_of(ledger / f"request-00{number}") for number in (1, 2))
    assert first.keys() == second.keys() and change(first, second) > 1e-4
    assert_same_weights(load_ledger(ledger)[0], weights_with(model_dir, ledger, [2, 3]))
    message = ledger_command("undo", "1", "--ledger", ledger, fails=True)
    assert (
        "It cannot be undone: request 2 ('customer 2') trained the adapter of request 1 ('customer 1') on" in message
    )
    assert_same_weights(load_ledger(ledger)[0], weights_with(model_dir, ledger, [2, 3]))
    # without the last of them, the one before is in use again
    ledger_command("undo", "2", "--ledger", ledger)
    assert_same_weights(load_ledger(ledger)[0], weights_with(model_dir, ledger, [1, 3]))
    ledger_command("undo", "1", "--ledger", ledger)
    assert_same_weights(load_ledger(ledger)[0], weights_with(model_dir, ledger, [3]))


@pytest.mark.parametrize("as_adapter", [False, True], ids=["model", "adapter"])
def test_merge(as_adapter, own_ledger, ledger_command, requests_dir, tmp_path):
    expected, tokenizer = load_ledger(own_ledger)
    merged = tmp_path / "merged"
    options = ["--adapter"] if as_adapter else []
    output = ledger_command("merge", merged, "--ledger", own_ledger, *options)
    assert f"trl-unlearn push {merged} org/name" in output.replace("\n", "")
    model, own_tokenizer = load_unlearned(str(merged))
    assert isinstance(model, PeftModel) == as_adapter and own_tokenizer.get_vocab() == tokenizer.get_vocab()
    torch.testing.assert_close(logits_of(model, tokenizer), logits_of(expected, tokenizer), atol=1e-5, rtol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    assert "is there already" in ledger_command("merge", merged, "--ledger", own_ledger, fails=True)

    card = ModelCard.load(merged / "README.md")
    requests = json.loads((own_ledger / "unlearn_ledger.json").read_text())["requests"]
    lines = [line for line in card.text.splitlines() if line.startswith(("| 1 |", "| 2 |", "| 3 |"))]
    for line, request in zip(lines, requests, strict=True):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[2:6] == [request["method"], "6", f"`{request['sha256'][:16]}`", "applied"]
        assert f"{request['results']['after']['forget_probability']:.4g}" in cells
    assert "makes a language model forget a private set of 18 rows, by SimNPO and NPO" in card.text or not as_adapter
    assert "What is undone" not in card.text
    # neither texts nor names, paths or hashes of rows
    published = "".join(
        path.read_text() for path in merged.iterdir() if path.suffix in (".md", ".yaml") or "results" in path.name
    )
    secrets = [
        "customer",
        str(own_ledger),
        str(tmp_path),
        *(digest for request in requests for digest in request["rows"]),
    ]
    secrets += [request["salt"] for request in requests]
    for number in (1, 2, 3):
        rows = load_dataset("json", data_files=str(requests_dir / f"forget-{number}.jsonl"), split="train")
        secrets += [*rows["question"], *rows["answer"]]
    assert [secret for secret in secrets if secret in published] == []
    results = load_results(merged)
    assert [request["sha256"] for request in results["requests"]] == [request["sha256"] for request in requests]


def test_names_are_published_if_asked_for(own_ledger, copy_of, ledger_command, tmp_path):
    ledger = copy_of(own_ledger)
    ledger_command("undo", "3", "--ledger", ledger)
    merged = tmp_path / "merged"
    ledger_command("merge", merged, "--ledger", ledger, "--adapter", "--publish_request_names")
    text = (merged / "README.md").read_text()
    assert all(f"customer {number}" in text for number in (1, 2, 3))
    assert text.count("| applied |") == 2 and text.count("| undone |") == 1
    assert "private set of 12 rows" in text and "What is undone is not part of this model" in text


@pytest.mark.parametrize("folder", ["request-001", "request-003/checkpoint-9"])
def test_single_requests_are_not_pushed(folder, own_ledger, copy_of, monkeypatch, tmp_path):
    ledger = copy_of(own_ledger)
    if not (ledger / folder).exists():
        shutil.copytree((ledger / folder).parent, ledger / folder)
    monkeypatch.setattr("sys.argv", ["trl-unlearn", "push", str(ledger / folder), "me/forgets"])
    with pytest.raises(SystemExit, match="belongs to one request of a ledger") as error:
        cli.main()
    command = f"trl-unlearn ledger merge merged --ledger {ledger}"
    assert command in str(error.value) and "To push it again" not in str(error.value)


def test_base_that_has_changed_is_not_loaded(own_ledger, ledger_command, other_model_dir, tmp_path):
    with pytest.raises(ValueError, match="The base model is .* but the requests in .* were trained on"):
        load_ledger(own_ledger, base_model=other_model_dir)
    message = ledger_command(
        "merge", tmp_path / "out", "--ledger", own_ledger, "--base_model", other_model_dir, fails=True
    )
    assert "were trained on" in message and not (tmp_path / "out").exists()
    with pytest.raises(FileNotFoundError, match=r"There is no ledger in .* Name its folder with `--ledger`"):
        load_ledger(tmp_path)
