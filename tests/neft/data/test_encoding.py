"""A completion follows its prompt as it does when a model writes it, with every kind of tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, ByT5Tokenizer, PreTrainedTokenizerFast

from neft.data import Document, Example, Segment, tokenize

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
STORIES = Path(__file__).parents[4] / "shared" / "data" / "models" / "stories260K" / "hf"
TURNS = (Segment("hi", False), Segment("hi there", True), Segment("hi", False), Segment(" hi", True))


def _fast(model, *, normalizer=None, pre_tokenizer=None, **special):
    tokenizer = Tokenizer(model)
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    if pre_tokenizer is not None:
        tokenizer.pre_tokenizer = pre_tokenizer
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**SPECIAL, **special})


def _pieces():
    words = ["<unk>", "<s>", "</s>", "▁hi", "hi", "▁there"]
    return {word: index for index, word in enumerate(words)}


def _example(tokenizer, *segments):
    return tokenize([Document(segments, 1)], tokenizer, max_length=64, overlong="error").examples[0]


@pytest.mark.parametrize(("scheme", "after_end"), [("first", 4), ("always", 3), ("never", 4)])
def test_no_space_is_put_before_a_completion(scheme, after_end):
    """SentencePiece-like: the prompt keeps the tokenizer's prefix, a completion has only the spaces of its text.

    After end-of-sequence a text is read as the tokenizer reads it there (3 is `▁hi`, 4 is `hi`, 5 is `▁there`).
    """
    scheme_of = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    tokenizer = _fast(models.WordLevel(_pieces(), unk_token="<unk>"), pre_tokenizer=scheme_of)
    first = 4 if scheme == "never" else 3
    ids = [first, 4, 5, 2, after_end, 3, 2]
    assert _example(tokenizer, *TURNS) == Example(ids, [-100, 4, 5, 2, -100, 3, 2])


def test_the_prefix_of_a_normalizer_too():
    """Llama's older files put the space in the normalizer: it is left out inside a document as well."""
    steps = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    merges = [("▁", "h"), ("▁h", "i"), ("h", "i")]
    vocabulary = {w: i for i, w in enumerate(["<unk>", "<s>", "</s>", "▁", "h", "i", "▁h", "▁hi", "hi"])}
    tokenizer = _fast(models.BPE(vocabulary, merges, unk_token="<unk>"), normalizer=steps)
    example = _example(
        tokenizer, Segment("hi", False), Segment("hi hi", True), Segment("hi", False), Segment("hi", True)
    )
    assert example == Example([7, 8, 7, 2, 7, 8, 2], [-100, 8, 7, 2, -100, 8, 2])


def test_byte_level_prefix_is_left_out_too():
    """A byte-level tokenizer with add_prefix_space puts its space before the prompt only."""
    vocabulary = {w: i for i, w in enumerate(["<unk>", "<s>", "</s>", "Ġ", "a", "Ġa"])}
    model = models.BPE(vocabulary, [("Ġ", "a")], unk_token="<unk>")
    tokenizer = _fast(model, pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True))
    assert _example(tokenizer, Segment("a", False), Segment("a a", True)).input_ids == [5, 4, 5, 2]


def test_the_prompts_ids_are_those_it_has_alone():
    """GPT-2's rule reads two line breaks before a letter apart, and as one token at the end of a prompt: it is one.

    No token spans the boundary either: `a` + `b` stays two tokens though the vocabulary has `ab`.
    """
    vocabulary = {w: i for i, w in enumerate(["<unk>", "<s>", "</s>", "a", "b", "Ċ", "ĊĊ", "ab"])}
    model = models.BPE(vocabulary, [("Ċ", "Ċ"), ("a", "b")], unk_token="<unk>")
    tokenizer = _fast(model, pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False))
    assert tokenizer("a\n\nb").input_ids == [3, 5, 5, 4]
    assert tokenizer("a\n\n").input_ids == [3, 6]
    assert _example(tokenizer, Segment("a\n\n", False), Segment("b", True)).input_ids == [3, 6, 4, 2]
    assert _example(tokenizer, Segment("a", False), Segment("b", True)).input_ids == [3, 4, 2]


def test_one_token_that_is_beginning_and_end():
    """BOS and EOS the same token (OPT): one at the beginning if the tokenizer adds it, and one at the end."""
    model = models.WordLevel({"<unk>": 0, "</s>": 1, "hi": 2}, unk_token="<unk>")
    tokenizer = _fast(model, pre_tokenizer=pre_tokenizers.WhitespaceSplit(), bos_token="</s>")
    assert _example(tokenizer, Segment("hi", False), Segment("hi", True)).input_ids == [2, 2, 1]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", special_tokens=[("</s>", 1)]
    )
    assert _example(tokenizer, Segment("hi", False), Segment("hi", True)).input_ids == [1, 2, 2, 1]


def test_a_tokenizer_in_python():
    """One without a fast backend: ByT5 (bytes + 3, closes every text with 1) gives the bytes and one end."""
    example = _example(
        ByT5Tokenizer(), Segment("a", False), Segment("é ", True), Segment("b", False), Segment("c", True)
    )
    assert example.input_ids == [100, 198, 172, 35, 1, 101, 102, 1]
    assert example.labels == [-100, 198, 172, 35, 1, -100, 102, 1]


@pytest.mark.skipif(not STORIES.is_dir(), reason=f"needs {STORIES}")
def test_a_llama_tokenizer_reads_back_the_very_text():
    """With a real Llama vocabulary, the prompt's ids are inference's, and prompt and answer decode to their text."""
    tokenizer = AutoTokenizer.from_pretrained(STORIES)
    prompt, answer = "### Response:", "1.Eat  well\n and sleep. é"
    example = _example(tokenizer, Segment(prompt, False), Segment(answer, True))
    prompt_ids = tokenizer(prompt).input_ids
    assert prompt_ids[0] == tokenizer.bos_token_id
    assert example.input_ids[: len(prompt_ids)] == prompt_ids
    assert example.input_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(example.input_ids, skip_special_tokens=True) == prompt + answer


def test_decoding_a_completion_gives_its_text():
    """What generate's tokens decode to after the prompt is the completion, for a trained SentencePiece-like BPE."""
    from tokenizers import trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    text = "the cat sat on the mat and the dog sat on the log "
    trainer = trainers.BpeTrainer(vocab_size=60, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    tokenizer.train_from_iterator([text * 4], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)
    for prompt, answer in (("the cat", " sat"), ("the c", "at sat"), ("the", "  dog  ")):
        ids = _example(fast, Segment(prompt, False), Segment(answer, True)).input_ids
        assert fast.decode(ids[:-1]) == prompt + answer
