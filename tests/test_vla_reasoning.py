import dataclasses

import pytest
import torch
from vla_examples import SMALL, seeded, training_batch

from vla.errors import PolicyError
from vla.images import preprocess_images
from vla.model import build_policy
from vla.prompt import REASONING_REQUEST_TEXT, REQUEST_TEXT
from vla.reasoning import write_reasoning
from vla.tokenizer import PLAN_TOKEN, REASONING_END, token_id
from vla.training_modes import TrainingModeConfig, apply_training_mode

CONFIG = dataclasses.replace(SMALL, reasoning_loss_weight=0.5)
TEXTS = ("slow down, a cyclist crosses", "")


def batch_with_text(config=CONFIG, texts=TEXTS):
    return dataclasses.replace(training_batch(config, len(texts)), reasoning=texts)


@pytest.fixture(scope="module")
def policy():
    return build_policy(CONFIG, seed=0).eval()


def test_the_label_mask_holds_the_text_and_its_marks(policy):
    batch = batch_with_text()
    rows = policy._prompts.rows(batch, ("slow down, a cyclist crosses", None))
    prompt = policy._prompts.batch(rows)
    assert policy.tokenizer.decode(prompt.ids[0][prompt.is_reasoning[0]]) == f"<|cot_start|>{TEXTS[0]}<|cot_end|>"
    assert not prompt.is_reasoning[1].any()
    with_text, without = (policy.tokenizer.decode(row) for row in rows)
    assert REASONING_REQUEST_TEXT in with_text
    assert REASONING_REQUEST_TEXT not in without
    assert REQUEST_TEXT in without
    assert with_text.endswith(f"<|cot_end|>{PLAN_TOKEN}")


def test_the_text_has_a_loss_of_its_own(policy):
    losses = policy.loss(batch_with_text(), seeded(0)[0])
    torch.testing.assert_close(losses["loss"], losses["flow_loss"] + 0.5 * losses["reasoning_loss"])
    # A fresh model guesses among the vocabulary.
    assert losses["reasoning_loss"] > 2.0


def test_the_text_loss_is_the_mean_log_probability_of_its_tokens(policy):
    batch = batch_with_text()
    texts = (TEXTS[0], None)
    prompt = policy._prompts.batch(policy._prompts.rows(batch, texts))
    with torch.no_grad():
        logits = policy.backbone.logits(policy.encode(batch, texts).hidden)
    chances = torch.log_softmax(logits[0], dim=-1)
    where = prompt.is_reasoning[0].nonzero()[:, 0].tolist()
    expected = -sum(chances[place - 1, prompt.ids[0, place]] for place in where) / len(where)
    torch.testing.assert_close(policy.loss(batch, seeded(0)[0])["reasoning_loss"], expected)


@pytest.mark.parametrize("texts", [None, ("", "")])
def test_without_text_or_weight_the_loss_is_the_flow_loss(policy, texts):
    silent = policy.loss(dataclasses.replace(training_batch(CONFIG, 2), reasoning=texts), seeded(0)[0])
    assert float(silent["reasoning_loss"]) == 0.0
    assert torch.equal(silent["loss"], silent["flow_loss"])
    off = build_policy(SMALL, seed=0).eval().loss(batch_with_text(SMALL), seeded(0)[0])
    assert "reasoning_loss" not in off
    assert torch.equal(off["loss"], silent["loss"])


def test_a_batch_without_text_has_gradients_for_the_same_weights():
    reached = []
    for texts in (TEXTS, ("", "")):
        policy = build_policy(CONFIG, seed=0)
        policy.loss(batch_with_text(texts=texts), seeded(0)[0])["loss"].backward()
        reached.append({name for name, p in policy.named_parameters() if p.grad is not None})
    assert reached[0] == reached[1]


def test_the_text_of_an_example_counts_by_its_weight(policy):
    both = batch_with_text(texts=("stop", "turn left at the junction"))
    first = dataclasses.replace(both, weight=both.weight * [1, 0])
    alone = dataclasses.replace(both, reasoning=("stop", ""))
    losses = [policy.loss(batch, seeded(0)[0])["reasoning_loss"] for batch in (both, first, alone)]
    torch.testing.assert_close(losses[1], losses[2], atol=1e-5, rtol=0)
    assert abs(float(losses[0] - losses[1])) > 1e-3


def test_training_text_reaches_the_whole_language_model():
    policy = build_policy(CONFIG, seed=0)
    table = apply_training_mode(policy, TrainingModeConfig("all"))
    assert next(row for row in table.rows if row.part == "unread").total == 0
    policy.loss(batch_with_text(), seeded(0)[0])["loss"].backward()
    silent = [name for name, p in policy.named_parameters() if p.grad is None or not bool(p.grad.abs().max() > 0)]
    assert silent == []


@torch.no_grad()
def test_written_text_leaves_the_cache_of_the_whole_prompt(policy):
    batch = dataclasses.replace(training_batch(CONFIG, 2), navigation=("", "turn left in 50 m, then keep right"))
    started = policy.encode(batch, ("", ""))
    ids, cache = write_reasoning(policy.backbone, policy.tokenizer, started, 3)
    assert [len(row) for row in ids] == [3, 3]
    ends = (token_id(policy.tokenizer, REASONING_END), token_id(policy.tokenizer, PLAN_TOKEN))
    for place in range(2):
        prompt_row = policy._prompts.rows(batch, ("", ""))[place]
        row = (*prompt_row, *ids[place], *ends)
        one = policy._prompts.batch([row])
        images = torch.stack([torch.from_numpy(batch.images[c][place]) for c in CONFIG.cameras])[None]
        patches, grid = preprocess_images(images, policy.backbone.image_settings)
        history = policy.history_encoder(torch.from_numpy(batch.ego_history[place : place + 1]))
        whole = policy.backbone.encode(one, [row], patches, grid, history)
        assert cache.next_position[place] == whole.next_position[0]
        for found, expected in zip(cache.keys + cache.values, whole.keys + whole.values, strict=True):
            kept = found[place][:, cache.mask[place]]
            torch.testing.assert_close(kept, expected[0], atol=2e-5, rtol=1e-4)


def test_the_policy_learns_to_say_and_then_plans():
    config = dataclasses.replace(CONFIG, reasoning_loss_weight=1.0, training_draws=1)
    texts = ("stop for the light", "follow the car")
    policy = build_policy(config, seed=0)
    batch = dataclasses.replace(training_batch(config, 2, seed=1), reasoning=texts)
    optimiser = torch.optim.AdamW(policy.parameters(), 3e-3)
    for _ in range(40):
        optimiser.zero_grad()
        policy.loss(batch, seeded(0)[0])["loss"].backward()
        optimiser.step()
    said, _ = policy.eval().reason(batch, max_tokens=32)
    assert said == texts
    silent = policy.sample(batch, 2, 1.0, seeded(0, 1)).poses
    policy.config = dataclasses.replace(config, reasoning_tokens=32)
    aloud = policy.sample(batch, 2, 1.0, seeded(0, 1)).poses
    assert aloud.shape == silent.shape
    assert not torch.equal(aloud, silent)


def test_bad_texts_are_named(policy):
    with pytest.raises(PolicyError, match="reasoning: found 1 texts for 2 examples"):
        policy.loss(dataclasses.replace(training_batch(CONFIG, 2), reasoning=("a",)), seeded(0)[0])
    with pytest.raises(PolicyError, match=r"reasoning: row 1 holds 'a <\|image_pad\|>'; expected plain text"):
        policy.loss(batch_with_text(texts=("", "a <|image_pad|>")), seeded(0)[0])
    with pytest.raises(PolicyError, match="navigation: row 0 holds"):
        policy.encode(dataclasses.replace(training_batch(CONFIG, 1), navigation=("<|traj_history|>",)))
    with pytest.raises(PolicyError, match="reasoning_loss_weight: found -1"):
        dataclasses.replace(CONFIG, reasoning_loss_weight=-1.0)
    with pytest.raises(PolicyError, match="reasoning_tokens: found 0, expected 1 or more"):
        policy.reason(training_batch(CONFIG, 1))
