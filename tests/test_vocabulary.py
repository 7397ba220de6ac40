"""The shared-id contract: same ids or no start, and padding that can never be sampled."""

import warnings
from pathlib import Path

import pytest

from proxytune import ProxyGenerator
from proxytune.errors import ProxyTuneWarning, VocabularyError
from proxytune.vocabulary import shared_size
from tests import tiny
from tests.reference import Reference


class Vocabulary:
    """All that the check asks of a tokenizer."""

    def __init__(self, tokens: dict[str, int]) -> None:
        self.tokens = tokens

    def get_vocab(self) -> dict[str, int]:
        """Return token to id."""
        return self.tokens


def numbered(*tokens: str) -> Vocabulary:
    """Return a vocabulary with ids in order."""
    return Vocabulary({token: index for index, token in enumerate(tokens)})


@pytest.mark.parametrize(
    ("widths", "size"),
    [
        ({"base": 4, "expert": 4, "anti": 4}, 4),
        ({"base": 8, "expert": 6, "anti": 16}, 4),
        ({"base": 4, "expert": 3, "anti": 4}, 3),
    ],
)
def test_size_is_what_all_share(widths: dict[str, int], size: int) -> None:
    """The shortest of the heads' widths and the tokenizers' ids."""
    same = dict.fromkeys(widths, numbered("a", "b", "c", "d"))
    assert shared_size(same, widths) == size


def test_added_tokens_at_the_end_are_cut() -> None:
    """An expert with tokens of its own behind the shared ones fits; those are not shared."""
    own = numbered("a", "b", "c", "<pad>", "<|im_end|>")
    widths = {"base": 3, "expert": 5, "anti": 3}
    assert shared_size({"base": numbered("a", "b", "c"), "expert": own, "anti": numbered("a", "b", "c")}, widths) == 3


def test_a_hole_is_no_difference() -> None:
    """An id that one tokenizer leaves out is nobody else's token there."""
    holed = Vocabulary({"a": 0, "c": 2})
    assert shared_size({"base": numbered("a", "b", "c"), "anti": holed}, {"base": 3, "anti": 3}) == 3


def test_another_token_at_an_id_is_refused_by_name() -> None:
    """The text names role, id and both tokens, three of them at most, and how many differ."""
    with pytest.raises(
        VocabularyError, match=r"base and anti .*4 differences; id 1 is 'b' in base and 'x' in anti; "
    ) as error:
        shared_size(
            {"base": numbered("a", "b", "c", "d", "e"), "anti": numbered("a", "x", "y", "z", "u")},
            {"base": 5, "anti": 5},
        )
    assert "id 3" in str(error.value)
    assert "id 4" not in str(error.value)


def test_a_moved_token_is_refused() -> None:
    """A token whose id differs where the other has a hole is caught too."""
    moved = Vocabulary({"a": 0, "b": 2})
    with pytest.raises(VocabularyError, match="'b' is id 1 in base and 2 in expert"):
        shared_size({"base": Vocabulary({"a": 0, "b": 1, "d": 3}), "expert": moved}, {"base": 4, "expert": 4})


def test_roles_are_all_compared() -> None:
    """A difference in the last role is found although the first two agree."""
    with pytest.raises(VocabularyError, match="base and anti"):
        shared_size(
            {"base": numbered("a", "b"), "expert": numbered("a", "b"), "anti": numbered("b", "a")},
            {"base": 2, "expert": 2, "anti": 2},
        )


def test_models_of_the_same_size_and_other_tokens_are_refused(data: Path) -> None:
    """stories260K and aidreams260K have 512 ids each, of which most mean different things."""
    stories, dreams = (str(data / "models" / name / "hf") for name in ("stories260K", "aidreams260K"))
    with pytest.raises(VocabularyError, match=r"do not share token ids \(\d+ differences; id \d+ is '.+' in base"):
        ProxyGenerator(stories, stories, dreams)


def test_a_tokenizer_given_for_all_is_checked_against_the_roles_own(folders: dict[str, Path]) -> None:
    """`tokenizer=` does not switch the check off."""
    other = tiny.word_tokenizer([f"v{index}" for index in range(60)])
    with pytest.raises(VocabularyError, match="id 4 is 'v0' in tokenizer and 'w0' in base"):
        ProxyGenerator(folders["base"], folders["expert"], folders["anti"], tokenizer=other)


def test_a_role_may_read_tokens_that_the_others_lack(folders: dict[str, Path], tmp_path: Path) -> None:
    """An expert's turn mark behind the shared ids reaches the expert alone, and is never generated."""
    mark = tiny.VOCAB_SIZE
    expert = tiny.new_model("llama", 7, vocab_size=mark + 1)
    # The mark would win every step if its logit counted.
    expert.lm_head.weight.data[mark] = 50 * expert.lm_head.weight.data[mark].sign()
    expert.save_pretrained(tmp_path)
    tokenizer = tiny.word_tokenizer([*tiny.WORDS, "<turn>"])
    tokenizer.save_pretrained(tmp_path)
    roles = {"base": folders["base"], "expert": tmp_path, "anti": folders["anti"]}
    generator = ProxyGenerator(**roles, expert_prompt="<turn> {prompt}")
    [done] = generator.generate("w1 w2", max_new_tokens=6, ignore_eos=True, repetition_penalty=1.0)
    text = [tiny.BOS, 5, 6]
    reference = Reference(tiny.trio()[0], [(expert, tiny.trio()[2])], tiny.VOCAB_SIZE)
    assert generator.model.config.vocab_size == mark
    assert list(done.token_ids) == reference.greedy([text, [tiny.BOS, mark, *text[1:]], text], [1.0], 6)


def test_an_end_token_beyond_the_shared_ids_is_said() -> None:
    """A chat expert's turn mark behind the base's vocabulary can never come: a warning names it and the role."""
    tokenizer = tiny.word_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    tokenizer.eos_token = "<|im_end|>"
    expert = tiny.new_model("llama", 2, vocab_size=65, eos_token_id=64)
    base, _, anti = tiny.trio()
    with pytest.warns(ProxyTuneWarning, match=r"texts of the .*expert.* end with '<\|im_end\|>' \(id 64\), .* 64 ids"):
        ProxyGenerator(base, expert, anti, tokenizer=tokenizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ProxyTuneWarning)
        ProxyGenerator(base, expert, anti, tokenizer=tokenizer, eos_token_ids=[2])
