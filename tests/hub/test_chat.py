"""The same question goes to the unlearned model, its base and the retained one, and each gives its own answer."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from trl_unlearn.scripts.chat import answers_of, build_parser, load_columns


CHAT = [sys.executable, "-c", "from trl_unlearn.scripts.chat import main; main()"]
LENGTH = ["--max_new_tokens", "8"]


def files_of(folder, **renamed) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()} | renamed


@pytest.fixture(scope="module")
def adapter_dir(model_dir, tmp_path_factory):
    torch.manual_seed(0)
    config = LoraConfig(
        r=4, lora_alpha=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    directory = tmp_path_factory.mktemp("adapter")
    get_peft_model(AutoModelForCausalLM.from_pretrained(model_dir), config).save_pretrained(directory)
    (directory / "README.md").write_text("# An adapter")
    return directory


@pytest.fixture(scope="module")
def question(world):
    return world["full"][0]["question"]


def greedy_answer(model, tokenizer, *messages: dict) -> str:
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    ids = ids["input_ids"]
    new = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True).strip()


def test_answers_are_those_of_each_model(adapter_dir, model_dir, model, tokenizer, question):
    message = {"role": "user", "content": question}
    expected_base = greedy_answer(model, tokenizer, message)
    expected = greedy_answer(PeftModel.from_pretrained(model, adapter_dir), tokenizer, message)
    assert expected_base != expected
    arguments = build_parser().parse_args([str(adapter_dir), "--base", "--retained", model_dir, *LENGTH])
    columns = load_columns(arguments)
    assert list(columns) == [f"Unlearned: {adapter_dir}", f"Base: {model_dir}", f"Retained: {model_dir}"]
    for _ in range(2):  # the adapter is on again after the base was asked
        assert [answer(question) for answer in columns.values()] == [expected, expected_base, expected_base]


def test_base_of_an_adapter_is_not_loaded_twice(adapter_dir, model_dir):
    arguments = build_parser().parse_args([str(adapter_dir), "--base", *LENGTH])
    models = [
        cell.cell_contents
        for answer in load_columns(arguments).values()
        for cell in answer.__closure__
        if isinstance(cell.cell_contents, torch.nn.Module)
    ]
    assert len(models) == 2 and models[0] is models[1]


def test_system_prompt_and_template(model, tokenizer, question):
    tokenizer.chat_template = (
        "{{ bos_token }}{% for message in messages %}{{ message.role }}: {{ message.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": question}
    arguments = build_parser().parse_args(["any", "--system_prompt", "Be brief.", *LENGTH])
    answer = answers_of(model, tokenizer, arguments)(question)
    assert answer == greedy_answer(model, tokenizer, system, user) != greedy_answer(model, tokenizer, user)

    template = "<|bos|><|user|>{question}<|eos|><|assistant|> {answer}"
    tokenizer.chat_template = "{{ bos_token }}<|user|>{{ messages[0].content }}{{ eos_token }}<|assistant|>"
    arguments = build_parser().parse_args(["any", "--question_answer_template", template, *LENGTH])
    plain = tokenizer(template.format(question=question, answer="")[:-1], add_special_tokens=False)["input_ids"]
    expected = model.generate(input_ids=torch.tensor([plain]), max_new_tokens=8, do_sample=False)[0, len(plain) :]
    expected = tokenizer.decode(expected, skip_special_tokens=True).strip()
    assert answers_of(model, tokenizer, arguments)(question) == expected


@pytest.mark.slow
def test_command_on_the_hub(hub_server, client, adapter_dir, model_dir, question):
    commit = hub_server.repository("models", "chat-user/base").commit(files_of(model_dir))
    config = json.loads((adapter_dir / "adapter_config.json").read_text())
    config |= {"base_model_name_or_path": "chat-user/base", "revision": commit}
    adapter = files_of(adapter_dir, **{"adapter_config.json": json.dumps(config).encode()})
    hub_server.repository("models", "chat-user/npo").commit(adapter)
    results = {"schema": 1, "base_model": {"name": "chat-user/base", "revision": commit}}
    whole = {name: content for name, content in files_of(model_dir).items() if not name.startswith("tokenizer")}
    whole["unlearn_results.json"] = json.dumps(results).encode()
    hub_server.repository("models", "chat-user/whole").commit(whole)

    asked = ["--base", "--retained", "chat-user/base", "--question", question, "--question", "[bold]Who?", *LENGTH]
    result = client([*CHAT, "chat-user/npo", *asked], COLUMNS="200")
    for shown in (
        "Unlearned: chat-user/npo",
        "Base: chat-user/base",
        "Retained: chat-user/base",
        question,
        "[bold]Who?",
    ):
        assert shown in result.stdout
    downloads = [
        path for method, path, _ in hub_server.requests if method == "GET" and path.endswith("/model.safetensors")
    ]
    assert len(downloads) == 1  # of the base, and the retained model is the same commit

    whole = client([*CHAT, "chat-user/whole", "--base", *LENGTH, "--question", question], COLUMNS="200").stdout
    assert "Unlearned: chat-user/whole" in whole and "Base: chat-user/base" in whole
    missing = client([*CHAT, "chat-user/none", "--question", question], check=False)
    assert missing.returncode == 1 and missing.stderr.strip().startswith("trl-unlearn chat: chat-user/none is neither")


def test_questions_from_standard_input(model_dir, question):
    result = subprocess.run(
        [*CHAT, model_dir, *LENGTH], input=f"{question}\n\nWho else?\n", capture_output=True, text=True, check=True
    )
    assert result.stdout.count("Unlearned: ") == 2 and "Who else?" in result.stdout


def test_whole_model_that_names_no_base(model_dir):
    with pytest.raises(ValueError, match="does not name the model it was made from. Pass it: `--base_model org/name`"):
        load_columns(build_parser().parse_args([model_dir, "--base"]))


def test_help_imports_nothing_heavy():
    code = "import sys; sys.argv = ['chat', '--help']\ntry:\n    from trl_unlearn.scripts.chat import main\n    main()"
    code += "\nfinally:\n    assert not {'torch', 'transformers', 'peft', 'huggingface_hub'} & set(sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--retained" in result.stdout
