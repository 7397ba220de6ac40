"""The demo trio with its base behind a server, and the same trio here."""

from functools import cache
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from proxytune import ProxyGenerator, RemoteSettings
from proxytune.demo import trio_path
from proxytune.demo.live import held_out_questions
from proxytune.demo.recipe import Recipe
from proxytune.hf.decoding.decoder import LoopDecoder
from tests.remote.completions_server import CompletionsServer

TRIO = trio_path()
SMALL = {"expert": TRIO / "expert", "anti": TRIO / "anti"}
FORMATS = {"base_prompt": "raw", "expert_prompt": "Question: {prompt}\nAnswer:", "anti_prompt": "Q: {prompt} "}
EXACT: dict[str, Any] = {"max_new_tokens": 32, "ignore_eos": True}


@cache
def base_model() -> Any:
    """Return the trio's base, which servers of this process share."""
    return AutoModelForCausalLM.from_pretrained(TRIO / "base").eval()


@cache
def base_tokenizer() -> Any:
    """Return its tokenizer."""
    return AutoTokenizer.from_pretrained(TRIO / "base")


def server(dialect: str = "vllm", **settings: Any) -> CompletionsServer:
    """Return a server of the trio's base; the vllm dialect gives the whole vocabulary unless told otherwise."""
    if dialect == "vllm":
        settings = {"max_logprobs": -1, **settings}
    return CompletionsServer(base_model(), base_tokenizer(), dialect, **settings)


def remote(url: str, *, speculation: Any = "off", roles: dict[str, Any] | None = None, **settings: Any) -> Any:
    """Return a generator whose base is at `url`; `settings` are those of its server, `roles` the generator's others."""
    base = RemoteSettings(**{"model": "base", "base_url": url, "timeout_s": 20.0, **settings})
    return ProxyGenerator(base=base, **SMALL, speculation=speculation, **(roles or {}))


@cache
def local(speculation: Any = "off", formats: bool = False) -> ProxyGenerator:
    """Return the composite with all three roles here."""
    return ProxyGenerator(base=TRIO / "base", **SMALL, speculation=speculation, **(FORMATS if formats else {}))


@cache
def questions(count: int = 16) -> list[str]:
    """Return prompts that the demo asks."""
    return [question.prompt for question in held_out_questions(Recipe().world())[:count]]


@cache
def greedy(count: int = 16) -> list[tuple[int, ...]]:
    """Return the local composite's greedy tokens for `questions`."""
    return tokens(local().generate(questions(count), **EXACT))


def tokens(rows: Any) -> list[tuple[int, ...]]:
    """Return the ids of every row."""
    return [row.token_ids for row in rows]


def loop_of(generator: ProxyGenerator) -> LoopDecoder:
    """Return a generator's decode loop."""
    found: LoopDecoder = generator._runtime.loop
    return found


def prompt_ids(text: str) -> list[int]:
    """Return the ids of a prompt as the base reads it."""
    found: list[int] = base_tokenizer()(text).input_ids
    return found


def likeliest(owner: CompletionsServer, ids: list[int], count: int) -> torch.Tensor:
    """Return the ids `[T, count]` that the base likes best after each prefix."""
    return owner.log_probs(ids).topk(count).indices
