"""Samples follow the softmax, and are the same whatever the batch, the way of decoding and the last bits of the logits."""

from hashlib import blake2b

import pytest
import torch

from trl_unlearn.evaluation.generate import decode_batch, generate_batch, generation_settings
from trl_unlearn.evaluation.plan import Plan
from trl_unlearn.evaluation.sampling import Sampling


LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])


def draw(sampling, logits, num_samples, step=0):
    keys = sampling.keys([(("prompt",), repeat) for repeat in range(num_samples)])
    return sampling.perturb(logits.expand(num_samples, -1), keys, step).argmax(-1)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, LOGITS.softmax(-1)),
        ({"temperature": 0.5}, (2 * LOGITS).softmax(-1)),
        ({"top_k": 3}, torch.cat([LOGITS[:3].softmax(-1), torch.zeros(3)])),
        # 0.55 + 0.20 is less than 0.8, so that the third is the last one
        ({"top_p": 0.8}, torch.cat([LOGITS[:3].softmax(-1), torch.zeros(3)])),
        ({"top_k": 2, "temperature": 2.0}, torch.cat([(LOGITS[:2] / 2).softmax(-1), torch.zeros(4)])),
    ],
)
def test_tokens_are_drawn_as_often_as_the_softmax_says(options, expected):
    number = 20_000
    counts = torch.bincount(draw(Sampling(seed=1, **options), LOGITS, number), minlength=6)
    sigma = (number * expected * (1 - expected)).sqrt()
    assert ((counts - number * expected).abs() <= 4 * sigma).all(), counts
    assert (counts[expected == 0] == 0).all()


def test_steps_repeats_and_seeds_are_independent():
    """Each pair of draws is as frequent as the product of its parts."""
    number, logits = 20_000, torch.zeros(4)
    first = draw(Sampling(seed=0), logits, number)
    for other in (
        draw(Sampling(seed=0), logits, number, step=1),
        draw(Sampling(seed=1), logits, number),
        first.roll(1),
    ):
        pairs = torch.bincount(4 * first + other, minlength=16)
        assert ((pairs - number / 16).abs() <= 4.5 * (number * 15 / 256) ** 0.5).all(), pairs


def test_all_of_a_large_vocabulary_is_drawn_from():
    """Rare tokens are as frequent as they should be: half of the probability lies on 10,000 equal ones."""
    logits = torch.zeros(10_001)
    logits[0] = torch.tensor(10_000.0).log()
    tokens = draw(Sampling(), logits, 400)
    rare = tokens[tokens > 0]
    assert abs(len(rare) - 200) <= 40
    assert len(rare.unique()) >= len(rare) - 10
    assert abs(rare.float().mean() - 5_000) < 4 * 10_000 / 12**0.5 / len(rare) ** 0.5


def test_numbers_are_splitmix64_of_what_the_sample_is():
    """Recomputed with Python's integers, so that no version of anything changes what a seed gives."""

    def mix(state):
        for bits, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
            state = (state ^ (state >> bits)) * factor % 2**64
        return state

    sample, step, gamma = ((5, 6, 7), 3), 2, 0x9E3779B97F4A7C15
    digest = blake2b(repr((11, sample)).encode(), digest_size=8).digest()
    row = mix((int.from_bytes(digest, "little") + (step + 1) * gamma) % 2**64)
    uniform = [((mix((row + token * gamma) % 2**64) >> 12) + 0.5) * 2.0**-52 for token in range(1, 7)]
    sampling = Sampling(seed=11)
    found = sampling.perturb(torch.zeros(1, 6), sampling.keys([sample]), step)
    expected = -(-torch.tensor(uniform, dtype=torch.float64).log()).log()
    torch.testing.assert_close(found[0], expected, rtol=1e-14, atol=0)
    # Known from the first numbers of the generator with seed 1234567
    assert mix((1234567 + gamma) % 2**64) == 6457827717110365317


def test_the_last_bits_of_logits_hardly_ever_change_a_sample():
    """Not more often than a few times the distance between the distributions, however many tokens are likely."""
    torch.manual_seed(0)
    number, size = 4000, 1000
    logits = torch.randn(number, size)
    other = logits + 1e-3 * torch.randn(number, size)
    keys = Sampling().keys([(("prompt",), repeat) for repeat in range(number)])
    first, second = (Sampling().perturb(values, keys, 0).argmax(-1) for values in (logits, other))
    distance = (logits.softmax(-1) - other.softmax(-1)).abs().sum(-1).mean() / 2
    assert 1e-4 < distance < 1e-3
    assert (first != second).float().mean() < 5 * distance


@pytest.fixture
def prompts(world, tokenizer):
    rows = world["full"][::14]
    options = {"add_generation_prompt": True, "return_dict": False}
    return [
        tuple(tokenizer.apply_chat_template([{"role": "user", "content": row["question"]}], **options)) for row in rows
    ]


def test_batches_do_not_matter(model, tokenizer, prompts):
    """Rows end at different steps and are dropped; a lone row has no padding."""
    model.eval()
    results = []
    for max_generation_tokens in (1, 100, 10**6):
        plan = Plan()
        keys = [plan.generate(prompt, 12, repeat) for prompt in prompts for repeat in range(3)]
        plan.run(
            model,
            tokenizer,
            sampling=Sampling(seed=3),
            max_generation_tokens=max_generation_tokens,
            show_progress=False,
        )
        results.append([plan.generations[key] for key in keys])
        assert plan.cost["decoding_steps"] >= (len(keys) if max_generation_tokens == 1 else 1)
    assert results[0] == results[1] == results[2]
    assert len({tuple(ids) for ids in results[0][:3]}) > 1  # repeats differ
    assert len({len(ids) for ids in results[0]}) > 2


def test_generate_of_transformers_draws_the_same(model, tokenizer, prompts):
    """It is used for sharded weights; its own sampling settings, as chat models have them, are not."""
    model.eval()
    batch = [(prompt, 12, repeat) for prompt in prompts[:6] for repeat in range(2)]
    settings, sampling = generation_settings(model, tokenizer), Sampling(seed=5, temperature=0.8, top_k=40)
    expected, _ = decode_batch(model, batch, settings, sampling)
    model.generation_config.update(do_sample=True, temperature=5.0, top_k=3, top_p=0.5, repetition_penalty=3.0)
    model.generation_config.update(no_repeat_ngram_size=1, min_new_tokens=12, suppress_tokens=list(range(50, 400)))
    model.generation_config.update(
        forced_eos_token_id=7, bad_words_ids=[[9]], exponential_decay_length_penalty=(1, 9.0)
    )
    found, _ = generate_batch(model, batch, settings, sampling=sampling)
    assert found == expected
    greedy, _ = decode_batch(model, batch, settings)
    assert greedy != expected


def test_a_sample_is_one_of_the_model(model, tokenizer, prompts):
    """Step by step without cache, padding and batch, from the softmax and the same random numbers."""
    model.eval()
    sampling = Sampling(seed=9)
    batch = [(prompt, 8, 4) for prompt in prompts[:8]]
    found, _ = decode_batch(model, batch, generation_settings(model, tokenizer), sampling)
    for (prompt, limit, repeat), new_ids in zip(batch, found, strict=True):
        ids, keys = list(prompt), sampling.keys([(prompt, repeat)])
        for step in range(limit):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[:, -1]
            ids.append(int(sampling.perturb(logits, keys, step).argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
        assert new_ids == ids[len(prompt) :]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "`temperature` is 0.0"),
        ({"top_p": 0.0}, "`top_p` is 0.0"),
        ({"top_p": 1.5}, "`top_p` is 1.5"),
        ({"top_k": -1}, "`top_k` is -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**options)
