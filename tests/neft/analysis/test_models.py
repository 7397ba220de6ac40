"""Losses, flips and outputs of tiny models."""

from __future__ import annotations

import pytest
import torch

from neft.analysis.flips import top_token_flips
from neft.analysis.generating import Prompt, greedy_outputs, prompts_of
from neft.analysis.losses import document_losses, mean_loss
from neft.data import Document, Example, PaddingCollator, Segment
from neft.evaluating import evaluation_loss
from tests.neft.conftest import make_model

LENGTHS = (3, 9, 5, 7, 4)
EXAMPLES = [Example(list(range(4, 4 + n)), [-100, *range(5, 4 + n)]) for n in LENGTHS]
COLLATOR = PaddingCollator(pad_id=0)


def _prompts(*lengths):
    return [Prompt([1, *range(4, 4 + n)], "", "") for n in lengths]


def test_document_losses_by_hand(model):
    """Each is the cross-entropy of its own tokens alone, in the examples' order, whatever the batches."""
    logits = [model(torch.tensor([e.input_ids])).logits[0, :-1] for e in EXAMPLES]
    by_hand = [
        torch.nn.functional.cross_entropy(x, torch.tensor(e.labels[1:]), reduction="sum").item()
        for x, e in zip(logits, EXAMPLES, strict=True)
    ]
    for size in (1, 2, 5):
        losses = document_losses(model, EXAMPLES, COLLATOR, batch_size=size)
        assert [loss.total for loss in losses] == pytest.approx(by_hand, abs=1e-4)
        assert [loss.num_tokens for loss in losses] == [n - 1 for n in LENGTHS]
    assert model.training


def test_their_mean_is_the_evaluation_loss(model):
    """The mean over tokens is what training reports as its held-out loss."""
    losses = document_losses(model, EXAMPLES, COLLATOR, batch_size=2)
    assert mean_loss(losses) == pytest.approx(evaluation_loss(model, EXAMPLES, COLLATOR, batch_size=2), abs=1e-6)


def test_no_noise_flips_nothing_and_much_flips_most(model):
    """α = 0 flips no top token; a noise a thousand times the signal flips most; the modes stay."""
    model.eval()
    flips = top_token_flips(model, EXAMPLES, COLLATOR, alphas=(0.0, 1000.0), batch_size=2)
    assert flips[0.0] == 0
    assert flips[1000.0] > 0.5
    assert not model.training
    assert not model.get_input_embeddings().training


def test_flips_are_the_seeds(model):
    """The same seed gives the same share, and it is a share of the learned tokens."""
    one, two = (top_token_flips(model, EXAMPLES, COLLATOR, alphas=(5.0,), batch_size=2, seed=1) for _ in range(2))
    assert one == two
    num_tokens = sum(LENGTHS) - len(LENGTHS)
    assert one[5.0] * num_tokens == pytest.approx(round(one[5.0] * num_tokens))


def test_greedy_outputs_are_the_argmax(model, tokenizer):
    """Batched and padded on the left, every output is what taking the argmax token by token gives."""
    prompts = _prompts(2, 6, 4)
    outputs = greedy_outputs(model, tokenizer, prompts, max_new_tokens=5, batch_size=2)
    for prompt, output in zip(prompts, outputs, strict=True):
        assert output.text == tokenizer.decode(_by_hand(model, prompt.input_ids, 5), skip_special_tokens=True).strip()
    assert model.training


def _by_hand(model, input_ids, num_tokens, penalty=1.0):
    ids = list(input_ids)
    model.eval()
    for _ in range(num_tokens):
        logits = model(torch.tensor([ids])).logits[0, -1]
        seen = torch.tensor(sorted(set(ids)))
        logits[seen] = torch.where(logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty)
        ids.append(int(logits.argmax()))
        if ids[-1] == 2:
            break
    model.train()
    return [token_id for token_id in ids[len(input_ids) :] if token_id != 2]


def test_the_repetition_penalty_by_hand(model, tokenizer):
    """Positive logits of tokens seen before, in the prompt too, are divided by it, and negative ones multiplied."""
    prompts = _prompts(6)
    (output,) = greedy_outputs(model, tokenizer, prompts, max_new_tokens=8, batch_size=1, repetition_penalty=1.5)
    with torch.no_grad():
        wanted = _by_hand(model, prompts[0].input_ids, 8, penalty=1.5)
    assert output.text == tokenizer.decode(wanted, skip_special_tokens=True).strip()


def test_an_output_that_ends_says_so(tokenizer):
    """A model that always answers with end-of-sequence has an empty output that ended; another's is cut."""
    model = make_model()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    weight = model.lm_head.weight
    outputs = {}
    for token_id in (2, 9):
        hook = model.lm_head.register_forward_hook(
            lambda module, args, output, token_id=token_id: output.index_fill(-1, torch.tensor([token_id]), 9.0)
        )
        (outputs[token_id],) = greedy_outputs(model, tokenizer, _prompts(3), max_new_tokens=4, batch_size=1)
        hook.remove()
    assert weight.abs().max() == 0
    assert (outputs[2].text, outputs[2].is_ended) == ("", True)
    assert (outputs[9].text, outputs[9].is_ended) == ("w5 w5 w5 w5", False)


def test_prompts_are_first_exchanges(tokenizer):
    """Plain texts and prompts beyond the limit have none; of a conversation the first answer is the target."""
    documents = [
        Document((Segment("w1 w2", is_target=False), Segment(" w3 ", is_target=True)), row=1),
        Document((Segment("w1 w2 w3", is_target=True),), row=2),
        Document((Segment("w1 " * 9, is_target=False), Segment("w3", is_target=True)), row=3),
        Document((), row=4),
        Document(
            (
                Segment("w5", is_target=False),
                Segment("w6</s>", is_target=True),
                Segment("w7", is_target=False),
                Segment("w8</s>", is_target=True),
            ),
            row=5,
            has_own_markers=True,
        ),
    ]
    found = prompts_of(documents, tokenizer, max_prompt_tokens=4)
    assert [(prompt.input_ids, prompt.target) for prompt in found] == [([5, 6], "w3"), ([9], "w6")]
