"""ProxyGenerator: prompts in, steered completions out."""

import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

from tqdm import tqdm

from proxytune.checkpoints import load_tokenizer
from proxytune.completion import Completion, Request, Score
from proxytune.detokenize import TextStream
from proxytune.errors import ContextLengthError, OptionError, OutputError
from proxytune.hf.configuration import ProxyTunedConfig
from proxytune.hf.folder import local_folder, push
from proxytune.hf.loading import config_of, load_config, roles_of, save_composite, stored_generation_config
from proxytune.hf.modeling import ProxyTunedForCausalLM
from proxytune.methods import as_terms
from proxytune.options import GenerationOptions, LoopSettings, OptionKwargs, Speculation
from proxytune.prompts import Prompt, PromptFormat
from proxytune.requests import RequestBuilder, as_continuations, as_prompts
from proxytune.roles import Pair, Role, Term, as_pairs, term_of
from proxytune.rows import RowCutter
from proxytune.rules import Rule, rule_of
from proxytune.runtimes import RuntimeName, RuntimeOptions, load_draft, new_runtime, new_vllm_composite
from proxytune.shared_tokens import load_tokenizers, resolve_tokens
from proxytune.trace import Trace


class ProxyGenerator:
    """A base model steered at decode time by small tuned and untuned models.

    Attributes:
        model: The composite, an ordinary transformers causal LM (`ProxyTunedForCausalLM`); in runtime vllm, where the
            weights are in the engine's processes, an account of its roles.
        runtime: `"hf"` or `"vllm"`.
        tokenizer: The base's tokenizer; of a base behind an API, that of the small models.
        eos_token_ids: Ids that end a completion: those of all roles together unless given.
    """

    def __init__(
        self,
        base: Any = None,
        expert: Any = None,
        anti: Any = None,
        *,
        base_url: str | None = None,
        pairs: Sequence[Pair] | None = None,
        alpha: float = 1.0,
        rule: Rule | str | None = None,
        base_prompt: str = "raw",
        expert_prompt: str = "raw",
        anti_prompt: str = "raw",
        dtype: Any = None,
        device_map: Any = None,
        quantization: Any = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        amateur: Any = None,
        domain: Any = None,
        reward_model: Any = None,
        negative_prompt: str | None = None,
        tokenizer: Any = None,
        eos_token_ids: Sequence[int] | None = None,
        runtime: RuntimeName = "hf",
        engine_options: Mapping[str, Any] | None = None,
        speculation: Speculation = "auto",
        draft: Any = "expert",
        compile: Literal["auto", "off"] = "auto",
    ) -> None:
        """Load the roles and check that they share a vocabulary.

        Args:
            base: M, as hub id, folder, loaded model, or `Role` for settings of its own; behind an OpenAI-compatible API
                `"openai:<model>"`, or `RemoteSettings` for a budget, limits and more.
            expert: M+, likewise, or a peft adapter over the anti; `"base"` for the base itself.
            anti: M−, likewise; `"base"`, or `"none"` to add the expert's log-probabilities alone.
            base_url: Of that API, as in `"http://localhost:8000/v1"`. A key is read from OPENAI_API_KEY.
            pairs: In place of expert and anti: several pairs, whose differences add up.
            alpha: Strength for the one pair of `expert` and `anti`.
            rule: Rule that combines the logits, a name and perhaps its settings, as in `"contrastive,beta=0.1"`, see
                `proxytune.rules` and docs/methods.md; None is proxy tuning's.
            base_prompt: Prompt format of the base: raw, chat, a named format, or a text with `{prompt}` in it.
            expert_prompt: Prompt format of the expert.
            anti_prompt: Prompt format of the anti.
            dtype: For every role here that sets none; None is what the weights are stored in.
            device_map: Likewise; None is the first GPU, or the CPU.
            quantization: Likewise: "4bit" or "8bit".
            revision: Likewise.
            trust_remote_code: Likewise; off unless asked for.
            amateur: In place of expert and anti, contrastive decoding: base + α (base − amateur), by rule `contrastive`
                unless another is given.
            domain: Likewise a product with a model of the domain: base + α (domain − base); by rule `mixture`
                (1 − α) p(base) + α p(domain).
            reward_model: Likewise an autoregressive reward model: base + α log p(reward model).
            negative_prompt: Likewise guidance: base + α (base − base under this prompt format), as in
                `"Be rude: {prompt}"`, or `"{last}"`, a conversation's last message without its context.
            tokenizer: For all roles, where the models come without: folder, hub id or object.
            eos_token_ids: In place of the roles' own.
            runtime: `"hf"` (transformers), `"vllm"`, or `"auto"`: vLLM when it is installed, a CUDA device is there and
                the roles are given so that it can load them.
            engine_options: vLLM's `EngineArgs`: `tensor_parallel_size`, `gpu_memory_utilization`, `enforce_eager`, …
            speculation: Lossless drafting in runtime hf: "auto" measures whether it pays and how far to draft, k drafts
                k tokens, "off" none. The tokens are the same, seeded ones too.
            draft: The drafter: "expert", or a smaller model with the same vocabulary.
            compile: "auto" captures each role's forward as a CUDA graph, "off" runs eagerly; no difference on a CPU.

        Raises:
            RuntimeUnsupportedError: The runtime cannot run these roles; the text names the one that can.
            RoleError: A role is missing, cannot be loaded, or does not fit.
            VocabularyError: The roles do not share token ids.
            OptionError: α or another setting is out of range, or there is no such rule.
        """
        defaults = {
            "dtype": dtype,
            "device_map": device_map,
            "quantization": quantization,
            "revision": revision,
            "trust_remote_code": trust_remote_code,
        }
        named = {"amateur": amateur, "domain": domain, "reward_model": reward_model, "negative_prompt": negative_prompt}
        expert, anti, anti_prompt, rule = as_terms(named, expert, anti, anti_prompt, rule, pairs=pairs)
        all_pairs = as_pairs(expert, anti, pairs, alpha)
        base_role = Role.of(base, "base", base_url=base_url, **defaults)
        roles = [
            (
                term_of(pair.expert, "expert", base_role, **defaults),
                term_of(pair.anti, "anti", base_role, **defaults),
            )
            for pair in all_pairs
        ]
        formats = {"base_prompt": base_prompt, "expert_prompt": expert_prompt, "anti_prompt": anti_prompt}
        pair_formats = [name for pair in all_pairs for name in (pair.expert_prompt, pair.anti_prompt)]
        for name in (*formats.values(), *pair_formats):
            PromptFormat(name or "raw")
        loop = LoopSettings(speculation=speculation, draft=draft, compile=compile)
        options = RuntimeOptions(name=runtime, engine_options=engine_options, loop=loop)
        config = config_of(base_role, all_pairs, roles, formats, rule)
        self._start(base_role, roles, config, options, tokenizer, eos_token_ids, defaults)

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        base_url: str | None = None,
        alpha: float | Sequence[float] | None = None,
        rule: Rule | str | None = None,
        base_prompt: str | None = None,
        expert_prompt: str | None = None,
        anti_prompt: str | None = None,
        dtype: Any = None,
        device_map: Any = None,
        quantization: Any = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        trust_paths: bool = False,
        tokenizer: Any = None,
        runtime: RuntimeName = "hf",
        engine_options: Mapping[str, Any] | None = None,
        speculation: Speculation = "auto",
        draft: Any = "expert",
        compile: Literal["auto", "off"] = "auto",
    ) -> "ProxyGenerator":
        """Load what `save_pretrained` wrote; what is given here takes the place of what is stored.

        Args:
            folder: The proxy folder, or its hub id.
            base_url: Of a base behind an API. Such a base is sent no key unless you name its server here, too.
            alpha: One number, or one per pair.
            rule: As in the constructor.
            base_prompt: Format of the base.
            expert_prompt: Format of the experts that have none of their own.
            anti_prompt: Format of the antis that have none of their own.
            dtype: For every role.
            device_map: For every role, as in transformers.
            quantization: For every role.
            revision: Of the proxy folder on the hub.
            trust_remote_code: Never stored, so it must be asked for again.
            trust_paths: Follow paths that lead further than to folders beside this one, where another user or machine
                wrote them.
            tokenizer: In place of the one in the folder.
            runtime: As in the constructor.
            engine_options: Likewise.
            speculation: Likewise.
            draft: Likewise.
            compile: Likewise.

        Raises:
            RoleNotFoundError: No proxy folder there, or a role it names is gone.
            RoleError: It names a path outside it, see `trust_paths`.
        """
        config = load_config(folder, base_url=base_url, revision=revision, trust_paths=trust_paths)
        folder = local_folder(folder, revision)
        formats = {"base_prompt": base_prompt, "expert_prompt": expert_prompt, "anti_prompt": anti_prompt}
        for name, value in formats.items():
            if value is not None:
                setattr(config, name, PromptFormat(value).name)
        if alpha is not None:
            config.replace_alphas(alpha)
        if rule is not None:
            config.rule = str(rule_of(rule))
        defaults: dict[str, Any] = {"dtype": dtype, "device_map": device_map, "quantization": quantization}
        defaults = {name: value for name, value in defaults.items() if value is not None}
        if trust_remote_code:
            defaults["trust_remote_code"] = True
        base, roles = roles_of(config, **defaults)
        loop = LoopSettings(speculation=speculation, draft=draft, compile=compile)
        options = RuntimeOptions(name=runtime, engine_options=engine_options, loop=loop)
        if tokenizer is None:
            tokenizer = load_tokenizer(Role(str(folder)))
        config.name_or_path = str(folder)
        stored = stored_generation_config(folder)
        eos = None if stored is None else stored.eos_token_id
        generator = cls.__new__(cls)
        eos_token_ids = [eos] if isinstance(eos, int) else eos
        generator._start(base, roles, config, options, tokenizer, eos_token_ids, defaults, stored)
        return generator

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a proxy folder: it names the roles, α and formats, and holds the tokenizer, but no weights.

        Raises:
            RoleError: A role was passed as a loaded model that has no folder or hub id.
            OutputError: The folder cannot be written.
        """
        try:
            save_composite(self.model, folder)
            self.tokenizer.save_pretrained(str(folder))
        except OSError as error:
            raise OutputError(f"cannot write the proxy folder {str(folder)!r}: {error.strerror or error}.") from error

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload the proxy folder to the hub, where `from_pretrained(repo_id)` finds it; return the commit's URL.

        Args:
            repo_id: "user/name".
            **options: `private`, `token`, `revision`, `commit_message`, `create_pr`.

        Raises:
            RoleError: A role is a folder of this machine, which nobody else has.
            OutputError: The hub refuses, or cannot be reached.
        """
        return push(repo_id, self.save_pretrained, self.model.config, **options)

    def generate(self, prompts: Prompt | Iterable[Prompt], **options: Unpack[OptionKwargs]) -> list[Completion]:
        """Return the completions of all prompts, in their order.

        Args:
            prompts: A prompt or several; a prompt is a string, a list of chat messages, or a list of token ids.
            **options: See `GenerationOptions`.

        Raises:
            InputError: No prompt, or one that cannot be read.
            OptionError: An option out of range.
            UnknownOptionError: An option that does not exist.
            ContextLengthError: A prompt longer than a role's context.
        """
        return sorted(self.generate_as_done(prompts, **options), key=lambda done: (done.index, done.sequence))

    def generate_as_done(
        self, prompts: Prompt | Iterable[Prompt], **options: Unpack[OptionKwargs]
    ) -> Iterator[Completion]:
        """Yield completions batch by batch, as they are done; `index` tells which prompt each belongs to.

        For long runs: what has been yielded can be stored at once. Arguments and errors as in `generate`.
        """
        checked = self._checked(options)
        given = as_prompts(prompts)
        requests = self._builder.for_generation(given, checked)
        bar = tqdm(total=len(requests), disable=not checked.progress, unit="row", desc="generate")
        return self._run(given, requests, checked, bar)

    def stream(self, prompt: Prompt, **options: Unpack[OptionKwargs]) -> Generator[str, None, Completion]:
        """Yield the completion's text as it comes; the generator's return value is the `Completion`.

        `completion = yield from gen.stream(…)` has it, as has `StopIteration.value`. Closing the generator ends the
        work. Arguments and errors as in `generate`, for one prompt, one sequence.
        """
        checked = self._checked(options)
        if checked.num_beams > 1 or checked.num_return_sequences > 1 or checked.logprobs is not None or checked.trace:
            raise OptionError("stream yields one text: use generate for beams, several, logprobs, or a trace.")
        [request] = self._builder.for_generation([prompt], checked)
        return self._stream(prompt, request, checked)

    def room(self, prompt: Prompt) -> int:
        """Return how many tokens every role can still read behind a prompt; 0 when it is already too long.

        Raises:
            InputError: It cannot be read.
        """
        try:
            [request] = self._builder.for_generation([prompt], GenerationOptions(max_new_tokens=2**31))
        except ContextLengthError:
            return 0
        return request.max_new_tokens

    def trace(
        self, prompt: Prompt, *, continuation: str | Sequence[int] | None = None, **options: Unpack[OptionKwargs]
    ) -> Trace:
        """Return what steering did at every token of the answer to a prompt (of several sequences, the first).

        Args:
            prompt: As in `generate`.
            continuation: Text or token ids to look at in place of generating, as in `score`.
            **options: As in `generate`; `alpha` and `trace`, how many tokens to keep, count for a continuation too.

        Raises:
            RuntimeUnsupportedError: The runtime is not hf.
        """
        options["trace"] = options.get("trace") or True
        if continuation is None:
            return self.generate([prompt], **options)[0].trace  # type: ignore[return-value]
        checked = GenerationOptions.from_kwargs(options)
        [request] = self._builder.for_scoring([prompt], [continuation], checked.alpha)
        trace: Trace = self._runtime.trace(request, request.continuation_ids, checked.num_trace_candidates)
        return trace

    def score(
        self,
        prompts: Prompt | Iterable[Prompt],
        continuations: str | Sequence[int] | Iterable[str | Sequence[int]],
        *,
        alpha: Any = None,
        batch_size: int = 16,
    ) -> list[Score]:
        """Return the log-probabilities of each continuation after its prompt, under the combined distribution.

        Text is tokenised together with the base's prompt and split behind it, as lm-evaluation-harness does; the same
        token ids then follow every role's prompt.

        Args:
            prompts: One or several, as in `generate`.
            continuations: One per prompt: text, or token ids.
            alpha: As in `generate`.
            batch_size: Most rows in one batch.
        """
        done = self.score_as_done(prompts, continuations, alpha=alpha, batch_size=batch_size)
        return [score for _, score in sorted(done, key=lambda item: item[0])]

    def score_as_done(
        self,
        prompts: Prompt | Iterable[Prompt],
        continuations: str | Sequence[int] | Iterable[str | Sequence[int]],
        *,
        alpha: Any = None,
        batch_size: int = 16,
    ) -> Iterator[tuple[int, Score]]:
        """Yield the index of a prompt and its score, batch by batch; every row is checked before the first runs.

        Arguments and errors as in `score`.
        """
        requests = self._builder.for_scoring(as_prompts(prompts), as_continuations(continuations), alpha)
        return ((request.index, score) for request, score in self._runtime.score(requests, batch_size))

    def _start(
        self,
        base: Role,
        roles: Sequence[tuple[Term, Term]],
        config: ProxyTunedConfig,
        options: RuntimeOptions,
        tokenizer: Any,
        eos_token_ids: Sequence[int] | None,
        defaults: Mapping[str, Any],
        generation_config: Any = None,
    ) -> None:
        """Load the roles, resolve tokenizers, vocabulary and special ids, and start the runtime.

        `eos_token_ids` and `generation_config` go before the roles' own; a draft model is loaded with `defaults`.
        """
        self.runtime = options.choose(base, roles)
        # First, for they are read in no time: what is wrong with them need not wait for the weights.
        self.tokenizer, role_tokenizers = load_tokenizers(base, roles, config, tokenizer)
        if self.runtime == "vllm":
            model = new_vllm_composite(base, roles, config, options.engine_options)
        else:
            model = ProxyTunedForCausalLM.from_roles(base, roles, config, self.tokenizer)
        model.generation_config = generation_config or model.generation_config
        self.model = model
        self.eos_token_ids = resolve_tokens(model, self.tokenizer, role_tokenizers, eos_token_ids)
        self._builder = RequestBuilder.for_model(model, role_tokenizers, self.tokenizer)
        drafter = None
        if options.loop.has_draft_model:
            shared = {"base": self.tokenizer}
            drafter = load_draft(options.loop.draft, defaults, model.config.vocab_size, shared)
        pad = model.generation_config.pad_token_id
        self._runtime = new_runtime(self.runtime, model, self.tokenizer, self.eos_token_ids, pad, options.loop, drafter)

    def close(self) -> None:
        """End the vLLM engine's processes, or the connections to a base behind an API; else there is nothing to end."""
        self._runtime.close()

    def _checked(self, options: Mapping[str, Any]) -> GenerationOptions:
        """Return the options of a call, checked."""
        return GenerationOptions.from_kwargs(options).for_tokenizer(self.tokenizer, self.model.config.vocab_size)

    def _run(
        self, prompts: Sequence[Prompt], requests: Sequence[Request], options: GenerationOptions, bar: Any
    ) -> Iterator[Completion]:
        with bar:
            for request, rows in self._runtime.generate(requests, options):
                for offset, row in enumerate(rows):
                    yield row.completion(prompts[request.index], request.index, request.sequence + offset)
                bar.update()

    def _stream(self, prompt: Prompt, request: Request, options: GenerationOptions) -> Generator[str, None, Completion]:
        text = TextStream(self.tokenizer, options.stop, before=request.role_ids[0][-1])
        ends = options.end_ids(self.eos_token_ids)
        token_ids: list[int] = []
        started = time.perf_counter()
        first_token_at = started
        for token_id in self._runtime.stream(request, options):
            token_ids.append(token_id)
            if len(token_ids) == 1:
                first_token_at = time.perf_counter()
            if token_id not in ends and (piece := text.push(token_id)):
                yield piece
        if piece := text.finish():
            yield piece
        row = RowCutter(self.tokenizer, self.eos_token_ids).row(
            token_ids,
            request,
            options,
            seconds=time.perf_counter() - started,
            first_token_seconds=first_token_at - started,
        )
        return row.completion(prompt, request.index, request.sequence)
