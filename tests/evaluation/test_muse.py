"""MUSE's numbers are those that one reads off the model row by row, in either generation of the data's layout."""

import json
import re

import numpy as np
import pytest
import torch
from hub_layout import write_folder
from rouge_score.rouge_scorer import RougeScorer
from tokenizers.processors import TemplateProcessing

from trl_unlearn.evaluation.logs import read_log, write_muse_logs
from trl_unlearn.evaluation.muse import evaluate_muse
from trl_unlearn.files import write_json


OLD_NAMES = {"retain_qa": "retain2_qa", "retain_qa_icl": "retain2_qa_icl", "retain": "retain2"}


@pytest.fixture
def muse_rows(world):
    """Configurations, splits and rows as in the Hub's MUSE, made of the embedded world's facts."""

    def texts(rows, size):
        return [" ".join(row["answer"] for row in rows[start : start + size]) for start in range(0, len(rows), size)]

    def questions(rows):
        return [{"question": row["question"], "answer": row["answer"]} for row in rows]

    def beginning_and_rest(row):
        words = f"{row['question']} {row['answer']} {row['answer']}".split()
        return {"prompt": " ".join(words[:6]), "gt": " ".join(words[6:])}

    forget, retain = world["forget"], world["retain"]
    return {
        "verbmem": {"forget": [beginning_and_rest(row) for row in forget[:5]]},
        "knowmem": {
            "forget_qa": questions(forget[:4]),
            "forget_qa_icl": questions(forget[8:10]),
            "retain_qa": questions(retain[:3]),
            "retain_qa_icl": questions(retain[8:10]),
        },
        "privleak": {
            name: [{"text": text} for text in texts(rows[:12], 2)]
            for name, rows in {"forget": forget, "retain": retain, "holdout": retain[12:]}.items()
        },
    }


@pytest.fixture
def folder(muse_rows, tmp_path):
    return write_folder(tmp_path / "MUSE-Small", muse_rows)


def evaluate(model, tokenizer, folder, **arguments):
    return evaluate_muse(model, tokenizer, folder, show_progress=False, **arguments)


@torch.no_grad()
def continue_alone(model, tokenizer, prompt_ids, max_new_tokens):
    """Greedy continuation of one prompt, without padding."""
    ids = torch.tensor([prompt_ids])
    output = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False)
    return tokenizer.decode(output[0, len(prompt_ids) :], skip_special_tokens=True)


@torch.no_grad()
def score_alone(model, ids, start):
    """Log-probabilities of `ids[start:]`, and whether each is the most probable token."""
    logits = model(torch.tensor([ids])).logits[0, start - 1 : -1].float()
    targets = torch.tensor(ids[start:])
    log_probabilities = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0].tolist()
    return log_probabilities, (logits.argmax(-1) == targets).tolist()


def min_k(log_probabilities):
    return -np.mean(sorted(log_probabilities)[: max(1, int(0.4 * len(log_probabilities)))])


def auc(forget, holdout):
    """Over all pairs, how often the holdout text scores above the forget text."""
    return np.mean([(theirs > own) + 0.5 * (theirs == own) for own in forget for theirs in holdout])


def strength(matches):
    k = next((k for k in range(len(matches)) if all(matches[k:])), len(matches))
    return 1 - k / len(matches)


def cut(text):
    for word in ("\n\n", "\nQuestion", "Question:"):
        text = text.split(word)[0]
    return text


def rouge(references, predictions, use_stemmer=False):
    scorer = RougeScorer(["rougeL"], use_stemmer=use_stemmer)
    pairs = zip(references, predictions, strict=True)
    return [scorer.score(reference, prediction)["rougeL"].fmeasure for reference, prediction in pairs]


@pytest.fixture(params=["no BOS", "BOS"])
def either_tokenizer(tokenizer, request):
    """As it is, and putting BOS before every text as Llama's does."""
    if request.param == "BOS":
        bos = (tokenizer.bos_token, tokenizer.bos_token_id)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=f"{tokenizer.bos_token} $A", special_tokens=[bos]
        )
        assert tokenizer("")["input_ids"] == [tokenizer.bos_token_id]
    return tokenizer


def test_equals_the_protocol_row_by_row(model, either_tokenizer, muse_rows, folder):
    tokenizer = either_tokenizer
    result = evaluate(model, tokenizer, folder)
    rows, summary = result["rows"], {}

    generated, references, strengths, exact = [], [], [], []
    for row in muse_rows["verbmem"]["forget"]:
        prompt_ids = tokenizer(row["prompt"])["input_ids"]
        generated.append(continue_alone(model, tokenizer, prompt_ids, 128))
        references.append(tokenizer.decode(tokenizer(row["gt"])["input_ids"][:128], skip_special_tokens=True))
        ids = tokenizer(f"{row['prompt']} {row['gt']}")["input_ids"]
        matches = score_alone(model, ids, len(prompt_ids))[1]
        strengths.append(strength(matches))
        exact.append(np.mean(matches))
    assert rows["forget_verbmem"]["generated"] == generated
    assert rows["forget_verbmem"]["answer"] == references
    summary["forget_verbmem"] = np.mean(rouge(references, generated))
    summary["forget_extraction_strength"], summary["forget_exact_memorization"] = np.mean(strengths), np.mean(exact)

    for name in ("forget", "retain"):
        configuration = muse_rows["knowmem"]
        examples = "".join(
            f"Question: {row['question']}\nAnswer: {row['answer']}\n\n" for row in configuration[f"{name}_qa_icl"]
        )
        prompts = [f"{examples}Question: {row['question']}\nAnswer: " for row in configuration[f"{name}_qa"]]
        answers = [row["answer"] for row in configuration[f"{name}_qa"]]
        generated = [continue_alone(model, tokenizer, tokenizer(prompt)["input_ids"], 32) for prompt in prompts]
        columns = rows[f"{name}_knowmem"]
        assert columns["prompt"] == prompts and columns["answer"] == answers and columns["generated"] == generated
        assert columns["score"] == pytest.approx(rouge(answers, map(cut, generated)))
        summary[f"{name}_knowmem"] = np.mean(columns["score"])

    scores = {
        name: [min_k(score_alone(model, tokenizer(row["text"])["input_ids"], 1)[0]) for row in texts]
        for name, texts in muse_rows["privleak"].items()
    }
    for name, values in scores.items():
        assert rows[name]["min_k"] == pytest.approx(values, rel=1e-4)
    summary["mia_min_k_auc"] = auc(scores["forget"], scores["holdout"])
    summary["privleak"] = (1 - summary["mia_min_k_auc"] - 0.4772) / 0.4772 * 100

    assert {name: result["summary"][name] for name in summary} == pytest.approx(summary, rel=1e-4)
    # A model that has learnt something, or the comparison shows little
    assert summary["forget_verbmem"] > 0.02 and summary["forget_exact_memorization"] > 0.1
    assert result["intervals"]["forget_verbmem"]["n"] == 5
    low, high = (result["intervals"]["forget_verbmem"][end] for end in ("low", "high"))
    assert low <= summary["forget_verbmem"] <= high


def test_everything_is_one_plan(model, tokenizer, muse_rows, folder):
    cost = evaluate(model, tokenizer, folder)["cost"]
    assert cost["scored_rows"] == 5 + 3 * 6
    assert cost["decoding_steps"] <= 128 + 32


@pytest.mark.parametrize("file_type", ["json", "parquet"])
def test_older_split_names(model, tokenizer, muse_rows, folder, tmp_path, file_type):
    old = write_folder(tmp_path / "MUSE-Old", muse_rows, OLD_NAMES, file_type)
    results = [evaluate(model, tokenizer, source) for source in (folder, old)]
    assert results[0]["summary"] == results[1]["summary"]
    assert results[0]["data"]["retain_knowmem"]["split"] == "retain_qa"
    assert results[1]["data"]["retain_knowmem"]["split"] == "retain2_qa"
    assert results[0]["data"]["retain"]["sha256"] == results[1]["data"]["retain"]["sha256"]


def test_provenance(model, tokenizer, folder):
    result = evaluate(model, tokenizer, folder, corpus="Books")
    assert result["benchmark"] == "muse" and result["split"] == "Books"
    assert result["data"]["forget_verbmem"]["dataset"] == "MUSE-Small"  # and not the folders it is in
    assert result["data"]["forget_knowmem_examples"]["n"] == 2
    assert result["generation"]["max_new_tokens"] == {"verbmem": 128, "knowmem": 32}
    assert "0.5393" in result["retain_reference"]["name"]
    assert "Llama-2-7B" in result["conventions"]["privleak"]
    assert json.loads(json.dumps(result)) == result


def test_retained_model_is_the_reference_of_privleak(model, tokenizer, folder, tmp_path):
    retained = evaluate(model, tokenizer, folder)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(0.5)
    result = evaluate(model, tokenizer, folder, retained=retained)
    ours, theirs = (1 - log["summary"]["mia_min_k_auc"] for log in (result, retained))
    assert result["summary"]["privleak"] == pytest.approx((ours - theirs) / theirs * 100)
    assert "retain_reference" not in result and "given" in result["conventions"]["privleak"]
    assert "mia_reference_auc" in result["summary"]

    write_json(retained, tmp_path / "evaluation.json")
    write_muse_logs(retained, tmp_path)
    for file in ("evaluation.json", "MUSE_EVAL.json"):
        again = evaluate(model, tokenizer, folder, retained=read_log(tmp_path / file))
        assert again["summary"]["privleak"] == pytest.approx(result["summary"]["privleak"]), file


def test_retained_model_of_other_texts(model, tokenizer, muse_rows, folder, tmp_path):
    retained = evaluate(model, tokenizer, folder)
    muse_rows["privleak"]["holdout"][3]["text"] += " Or not."
    other = write_folder(tmp_path / "MUSE-Other", muse_rows)
    with pytest.raises(ValueError, match="is of 6 holdout texts of MUSE-Small, and .* 6 others of MUSE-Other"):
        evaluate(model, tokenizer, other, retained=retained)
    del retained["data"]  # as in another evaluator's log
    retained["rows"]["forget"]["min_k"].pop()
    with pytest.raises(ValueError, match="is of 5 forget texts of unknown data, and this evaluation of 6 others"):
        evaluate(model, tokenizer, folder, retained=retained)


def test_result_without_auc_leaves_privleak_out(model, tokenizer, folder):
    result = evaluate(model, tokenizer, folder, retained={"summary": {}, "rows": {}})
    assert "privleak" not in result["summary"] and "retained model" in result["missing"]["privleak"]


def test_goes_on_from_finished_rows(model, tokenizer, folder, tmp_path):
    first = evaluate(model, tokenizer, folder, cache_dir=tmp_path / "rows")
    second = evaluate(model, tokenizer, folder, cache_dir=tmp_path / "rows")
    assert first["rows"] == second["rows"]
    assert second["cost"].get("scored_rows", 0) == 0 and second["cost"].get("generated_tokens", 0) == 0


def test_further_attacks(model, tokenizer, folder):
    result = evaluate(model, tokenizer, folder, extra_metrics=["min_k_plus_plus", "gradnorm"])
    for attack in ("loss", "zlib", "min_k", "min_k_plus_plus", "gradnorm"):
        forget, holdout = (result["rows"][name][attack] for name in ("forget", "holdout"))
        assert result["summary"][f"mia_{attack}_auc"] == pytest.approx(auc(forget, holdout))
    with pytest.raises(ValueError, match=re.escape("['self_confidence']; on MUSE expected some of min_k_plus_plus")):
        evaluate(model, tokenizer, folder, extra_metrics=["self_confidence"])


class TestOpenUnlearning:
    """Each difference from MUSE's own evaluator, by itself."""

    def test_stems(self, model, tokenizer, muse_rows, folder, tmp_path):
        generated = evaluate(model, tokenizer, folder)["rows"]["forget_verbmem"]["generated"]
        words = [re.findall(r"[A-Za-z]{4,}", text) for text in generated]
        most = max(range(len(words)), key=lambda index: len(words[index]))
        muse_rows["verbmem"]["forget"][most]["gt"] = " ".join(f"{word}s" for word in words[most])
        other = write_folder(tmp_path / "MUSE-Plural", muse_rows)
        rows = evaluate(model, tokenizer, other, compat="open-unlearning")["rows"]
        for name in ("forget_verbmem", "forget_knowmem", "retain_knowmem"):
            columns = rows[name]
            generated = [text if name == "forget_verbmem" else cut(text) for text in columns["generated"]]
            assert columns["score"] == pytest.approx(rouge(columns["answer"], generated, use_stemmer=True))
            if name == "forget_verbmem":
                assert columns["score"] != pytest.approx(rouge(columns["answer"], generated))

    def test_own_generation_config(self, model, tokenizer, folder):
        before, after = {}, {}
        for results, penalty in ((before, None), (after, 9.0)):
            model.generation_config.repetition_penalty = penalty
            for compat in (None, "open-unlearning"):
                results[compat] = evaluate(model, tokenizer, folder, compat=compat)["rows"]["forget_verbmem"][
                    "generated"
                ]
        assert after[None] == before[None]
        assert after["open-unlearning"] != before["open-unlearning"]

    def test_whole_continuations(self, model, tokenizer, muse_rows, tmp_path):
        row = muse_rows["verbmem"]["forget"][0]
        row["gt"] = " ".join([row["gt"]] * 20)
        folder = write_folder(tmp_path / "MUSE-Long", muse_rows)
        references = {
            compat: evaluate(model, tokenizer, folder, compat=compat)["rows"]["forget_verbmem"]["answer"][0]
            for compat in (None, "open-unlearning")
        }
        assert len(tokenizer(references[None])["input_ids"]) == 128
        assert references["open-unlearning"] == row["gt"]

    def test_last_token_is_left_out(self, model, either_tokenizer, muse_rows, folder):
        tokenizer = either_tokenizer
        rows = evaluate(model, tokenizer, folder, compat="open-unlearning")["rows"]
        strengths, exact = [], []
        for row in muse_rows["verbmem"]["forget"]:
            ids = tokenizer(f"{row['prompt']} {row['gt']}")["input_ids"]
            matches = score_alone(model, ids, len(tokenizer(row["prompt"])["input_ids"]))[1][:-1]
            strengths.append(strength(matches) or 1 / len(matches))
            exact.append(np.mean(matches))
        assert rows["forget_verbmem"]["extraction_strength"] == pytest.approx(strengths)
        assert rows["forget_verbmem"]["exact_memorization"] == pytest.approx(exact)
        for name, texts in muse_rows["privleak"].items():
            scored = [score_alone(model, tokenizer(row["text"])["input_ids"], 1)[0] for row in texts]
            assert rows[name]["min_k"] == pytest.approx([min_k(values[:-1]) for values in scored], rel=1e-4)
            assert rows[name]["loss"] == pytest.approx([-np.mean(values) for values in scored], rel=1e-4)

    def test_space_is_always_put_in(self, model, tokenizer, muse_rows, tmp_path):
        for row in muse_rows["verbmem"]["forget"]:
            row["gt"] = "\n" + row["gt"]
        folder = write_folder(tmp_path / "MUSE-Lines", muse_rows)
        for compat, gap, end in ((None, "", None), ("open-unlearning", " ", -1)):
            rows = evaluate(model, tokenizer, folder, compat=compat)["rows"]["forget_verbmem"]
            expected = []
            for row in muse_rows["verbmem"]["forget"]:
                ids = tokenizer(row["prompt"] + gap + row["gt"])["input_ids"]
                matches = score_alone(model, ids, len(tokenizer(row["prompt"])["input_ids"]))[1][:end]
                expected.append(np.mean(matches))
            assert rows["exact_memorization"] == pytest.approx(expected), compat

    def test_questions_are_cut_at_512_tokens(self, model, tokenizer, muse_rows, tmp_path):
        muse_rows["knowmem"]["forget_qa_icl"] *= 20
        folder = write_folder(tmp_path / "MUSE-Many", muse_rows)
        rows = evaluate(model, tokenizer, folder, compat="open-unlearning")["rows"]["forget_knowmem"]
        # Of all that is cut, nothing is left but the first examples: the same answer to all, and nothing to compare with
        assert rows["answer"] == ["", "", "", ""] and len(set(rows["generated"])) == 1
        prompt_ids = tokenizer(rows["prompt"][0])["input_ids"][:512]
        assert rows["generated"][0] == continue_alone(model, tokenizer, prompt_ids, 32)
        rows = evaluate(model, tokenizer, folder)["rows"]["forget_knowmem"]
        assert rows["answer"][0] == muse_rows["knowmem"]["forget_qa"][0]["answer"]
        assert rows["generated"][0] == continue_alone(model, tokenizer, tokenizer(rows["prompt"][0])["input_ids"], 32)

    def test_padding_token_is_hidden(self, model, tokenizer, muse_rows, folder):
        tokenizer.pad_token_id = tokenizer("a")["input_ids"][0]  # a letter that is in most texts
        ours, theirs = (
            evaluate(model, tokenizer, folder, compat=compat)["rows"]["forget"]["loss"]
            for compat in (None, "open-unlearning")
        )
        assert theirs != pytest.approx(ours, rel=1e-3)


def test_documents_are_cut(model, tokenizer, muse_rows, tmp_path):
    text = muse_rows["privleak"]["forget"][0]["text"]
    muse_rows["privleak"]["forget"][0]["text"] = " ".join([text] * (4096 // len(tokenizer(text)["input_ids"])))
    folder = write_folder(tmp_path / "MUSE-Long", muse_rows)
    ids = tokenizer(muse_rows["privleak"]["forget"][0]["text"])["input_ids"]
    assert len(ids) > 2048
    expected = min_k(score_alone(model, ids[:2048], 1)[0])
    result = evaluate(model, tokenizer, folder)
    assert result["rows"]["forget"]["min_k"][0] == pytest.approx(expected, rel=1e-4)


def test_bad_layouts(model, tokenizer, muse_rows, tmp_path):
    def refused(message, name, **configs):
        folder = write_folder(tmp_path / name, {**muse_rows, **configs})
        with pytest.raises(ValueError, match=message):
            evaluate(model, tokenizer, folder)

    knowmem, privleak, verbmem = (muse_rows[name] for name in ("knowmem", "privleak", "verbmem"))
    without_examples = {name: rows for name, rows in knowmem.items() if name != "retain_qa_icl"}
    refused(
        "`knowmem`, has the splits forget_qa, forget_qa_icl, retain_qa; expected one named "
        "`retain_qa_icl` or `retain2_qa_icl`",
        "a",
        knowmem=without_examples,
    )
    refused("split `forget`, has the columns prompt; expected `gt` too", "b", verbmem={"forget": [{"prompt": "Once"}]})
    empty = {**privleak, "holdout": [*privleak["holdout"][:2], {"text": " "}]}
    refused("Row 2 of .* split `holdout`, column `text`, is ' '", "c", privleak=empty)
    folder = write_folder(tmp_path / "d", {"verbmem": verbmem, "knowmem": knowmem})
    with pytest.raises(ValueError, match="privleak.*not found.*verbmem.*knowmem"):
        evaluate(model, tokenizer, folder)


def test_bad_arguments(model, tokenizer, folder):
    with pytest.raises(ValueError, match="`corpus` is 'news'; expected 'News' or 'Books'"):
        evaluate(model, tokenizer, folder, corpus="news")
    with pytest.raises(ValueError, match="`compat` is 'tofu'; expected 'open-unlearning' or None on MUSE"):
        evaluate(model, tokenizer, folder, compat="tofu")
