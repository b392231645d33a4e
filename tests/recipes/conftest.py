"""Small random models of the recipes' architectures, and rows in the layout of the recipes' data sets on the Hub."""

from pathlib import Path

import pytest
from hub_layout import write_folder
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers


# Llama 3's format without a template file: the date is today's, unless it is given
LLAMA_3_TEMPLATE = (
    "{{ bos_token }}<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: "
    "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}\n\n"
    "{% if messages[0]['role'] == 'system' %}{{ messages[0]['content'] }}{% endif %}<|eot_id|>"
    "{% for message in messages if message['role'] != 'system' %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
ZEPHYR_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] + eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def llama_3_tokenizer(texts):
    """Byte-level, with BOS in front, header tokens, and EOS that ends a turn."""
    from transformers import PreTrainedTokenizerFast

    special = [
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|finetune_right_pad_id|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
    ]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A",
        special_tokens=[("<|begin_of_text|>", tokenizer.token_to_id("<|begin_of_text|>"))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=special[0], eos_token=special[1], pad_token=special[2],
        additional_special_tokens=special[3:], chat_template=LLAMA_3_TEMPLATE,
    )  # fmt: skip


def llama_2_tokenizer(texts, chat_template=None):
    """Like SentencePiece: a space is a character of the word behind it, one stands in front of the text, and BOS before."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", "</s>"]
    tokenizer.train_from_iterator(
        [*texts, "[INST] [/INST]"], trainers.BpeTrainer(vocab_size=400, special_tokens=special, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="</s>",
        chat_template=chat_template,
    )  # fmt: skip


@pytest.fixture(scope="session")
def families(world, model_dir, tmp_path_factory) -> dict[str, str]:
    """Folder of a model by architecture family, and of Llama 2's tokenizer, which MUSE's targets come without."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    texts = [f"{row['question']} {row['answer']}" for row in world["full"]]
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    rope = {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    }  # fmt: skip
    llama_3, llama_2 = llama_3_tokenizer(texts), llama_2_tokenizer(texts)
    zephyr = llama_2_tokenizer(texts, ZEPHYR_TEMPLATE)
    torch.manual_seed(0)
    made = {
        "llama-3": (
            LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=len(llama_3), num_key_value_heads=2, tie_word_embeddings=True, rope_scaling=rope,
                    bos_token_id=llama_3.bos_token_id, eos_token_id=llama_3.eos_token_id, **size,
                )
            ),
            llama_3,
        ),
        "llama-2": (LlamaForCausalLM(LlamaConfig(vocab_size=len(llama_2), **size)), llama_2),
        "llama-2-bare": (LlamaForCausalLM(LlamaConfig(vocab_size=len(llama_2), **size)), None),
        "zephyr": (
            MistralForCausalLM(MistralConfig(vocab_size=len(zephyr), num_key_value_heads=2, sliding_window=64, **size)),
            zephyr,
        ),
    }  # fmt: skip
    directory = tmp_path_factory.mktemp("families")
    for name, (model, tokenizer) in made.items():
        model.save_pretrained(directory / name)
        if tokenizer is not None:
            tokenizer.save_pretrained(directory / name)
    llama_2.save_pretrained(directory / "llama-2-tokenizer")
    return {path.name: str(path) for path in directory.iterdir()} | {"world": model_dir}


@pytest.fixture(scope="session")
def hub(world, tmp_path_factory) -> dict[str, str]:
    """Folder by name of the data set, each with the configurations, splits and columns that it has on the Hub."""
    from datasets import Dataset

    directory = tmp_path_factory.mktemp("hub")

    def columns(rows, *names):
        return [{name: row[name] for name in names} for row in rows]

    def documents(rows):
        return [
            {"text": " ".join(row["answer"] for row in rows[start : start + 4])} for start in range(0, len(rows), 4)
        ]

    forget, retain = world["forget"], world["retain"]
    scored = ("question", "answer", "paraphrased_question", "paraphrased_answer", "perturbed_answer")
    unperturbed = {f"forget{n}": columns(forget[:6], "question", "answer") for n in ("01", "05", "10")}
    unperturbed |= {f"retain{n}": columns(retain[:9], "question", "answer") for n in ("99", "95", "90")}
    tofu = {
        **unperturbed,
        **{f"forget{n}_perturbed": columns(world["forget_perturbed"][:3], *scored) for n in ("01", "05", "10")},
        "retain_perturbed": columns(world["retain_perturbed"][:3], *scored),
        "real_authors_perturbed": columns(world["retain_perturbed"][3:5], "question", "answer", "perturbed_answer"),
        "world_facts_perturbed": columns(world["retain_perturbed"][5:7], "question", "answer", "perturbed_answer"),
    }
    muse = {
        "raw": {"forget": documents(forget[:12]), "retain1": documents(retain[:16]), "retain2": documents(retain[16:24])},
        "verbmem": {"forget": [{"prompt": row["question"], "gt": row["answer"]} for row in forget[:2]]},
        "knowmem": {
            f"{name}_qa{end}": columns(rows[:2], "question", "answer")
            for name, rows in {"forget": forget, "retain": retain}.items()
            for end in ("", "_icl")
        },
        "privleak": {name: documents(rows) for name, rows in
                     {"forget": forget[:8], "retain": retain[:8], "holdout": retain[16:24]}.items()},
    }  # fmt: skip
    papers = [{"title": "T", "abstract": "A", "doi": "10.0/0", **row} for row in documents(forget[:24])]
    # WikiText has a row a line: headings and empty ones between the paragraphs
    wikitext = [row for text in documents(retain[:16]) for row in ({"text": ""}, {"text": " = Heading = \n"}, text)]
    questions = [
        {"question": row["question"], "choices": [*row["perturbed_answer"][:3], row["answer"]], "answer": 3}
        for row in world["retain_perturbed"][:6]
    ]
    folders = {
        "locuslab/TOFU": write_folder(directory / "TOFU", {name: {"train": rows} for name, rows in tofu.items()}),
        "cais/wmdp-bio-forget-corpus": write_folder(
            directory / "bio", {"default": {"train": papers}}, file_type="parquet"
        ),
        "Salesforce/wikitext": write_folder(
            directory / "wikitext", {"wikitext-2-raw-v1": {"test": wikitext}}, file_type="parquet"
        ),
        "cais/wmdp": write_folder(directory / "wmdp", {"wmdp-bio": {"test": questions}}),
        "world": write_folder(directory / "world", {name: {"train": rows[:9]} for name, rows in world.items()}),
    }
    for corpus in ("News", "Books"):
        folders[f"muse-bench/MUSE-{corpus}"] = write_folder(directory / f"MUSE-{corpus}", muse, file_type="parquet")
    alternates = directory / "alternates" / "data" / "train-00000-of-00001.parquet"
    alternates.parent.mkdir(parents=True)
    rows = [
        {**row, "alternates": row["alternates"][:2]} for row in columns(forget[:6], "question", "answer", "alternates")
    ]
    Dataset.from_list(rows).to_parquet(alternates)
    folders["alternates"] = str(alternates.parents[1])
    return folders


@pytest.fixture
def in_the_repository(monkeypatch) -> Path:
    """Recipes name each other's files by paths from there."""
    import trl_unlearn

    repository = Path(trl_unlearn.__file__).parents[1]
    monkeypatch.chdir(repository)
    return repository
