"""The playground's page, in gradio: inputs, two answers that stream, and the token view in a frame of its own."""

import html
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from proxytune.errors import ProxyTuneError
from proxytune.playground.comparison import Answer, Comparison, Question

TITLE = "proxytune playground"
_ALPHA_RANGE = (-1.0, 3.0)
_MOST_TOKENS = 1024
_Update = tuple[str, str, str, str]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Initial values of the page.

    Attributes:
        prompt: In the field.
        alphas: Strength of each pair.
        formats: Role and prompt format, base first. They belong to the loaded composite, so they are shown only.
        options: Decoding options of every answer.
    """

    prompt: str
    alphas: tuple[float, ...]
    formats: Mapping[str, str]
    options: Mapping[str, Any]


class Page:
    """The page's events; one answer at a time, whoever asks waits in gradio's queue."""

    def __init__(self, comparison: Comparison, setting: Setting) -> None:
        self._comparison = comparison
        self._setting = setting
        self._stops: dict[str | None, threading.Event] = {}

    def blocks(self) -> gr.Blocks:
        """Return the page, ready to be launched."""
        with gr.Blocks(title=TITLE, analytics_enabled=False, fill_width=True) as blocks:
            gr.Markdown(f"# {TITLE}\n\nThe base alone and the steered base, side by side.")
            prompt = gr.Textbox(self._setting.prompt, label="Prompt", lines=2, max_lines=12, elem_id="prompt")
            with gr.Row():
                alphas = [self._alpha_slider(number, alpha) for number, alpha in enumerate(self._setting.alphas)]
                num_tokens = self._tokens_slider()
            gr.Textbox(
                ", ".join(f"{role}: {form}" for role, form in self._setting.formats.items()),
                label="How each role reads the prompt (settled when the models load: --expert-prompt and its like)",
                lines=1,
                max_lines=4,
                interactive=False,
                elem_id="formats",
            )
            with gr.Row():
                run = gr.Button("Run", variant="primary", elem_id="run")
                stop = gr.Button("Stop", variant="stop", elem_id="stop")
            with gr.Row():
                base, steered = (
                    gr.Textbox(label=label, lines=5, max_lines=24, interactive=False, elem_id=name)
                    for label, name in (("base (α = 0)", "base"), ("steered", "steered"))
                )
            status = gr.Textbox("Ready.", label="Status", interactive=False, max_lines=4, elem_id="status")
            view = gr.HTML(elem_id="view")
            gr.on(
                [run.click, prompt.submit],
                self.run,
                inputs=[prompt, num_tokens, *alphas],
                outputs=[base, steered, status, view],
                concurrency_limit=1,
                show_progress="minimal",
                show_progress_on=status,
                api_visibility="private",
            )
            stop.click(self.stop, queue=False, show_progress="hidden", api_visibility="private")
        return blocks

    def run(self, request: gr.Request, prompt: str, num_tokens: float, *alphas: float) -> Iterator[_Update]:
        """Yield both answers as they come, what there is to say, and at the end the token view."""
        stopped = self._stops[request.session_hash] = threading.Event()
        question = Question(
            prompt=prompt,
            alphas=tuple(map(float, alphas)),
            options={**self._setting.options, "max_new_tokens": int(num_tokens)},
        )
        texts = ("", "")
        try:
            yield *texts, "Reading the prompt …", ""
            pair: tuple[Answer, ...] = ()
            for pair in self._comparison.answers(question, stopped.is_set):
                texts = (pair[0].text, pair[1].text)
                yield *texts, "Answering …", ""
            yield *texts, "Reading the answers again for the token view …", ""
            page = self._comparison.token_view(question, pair)
            yield *texts, "Stopped." if stopped.is_set() else "Done.", "" if page is None else _frame(page)
        except ProxyTuneError as error:
            yield *texts, str(error).removeprefix("prompt 0: "), ""  # there is but one
        finally:
            self._stops.pop(request.session_hash, None)

    def stop(self, request: gr.Request) -> None:
        """End the answers of this session at the next token."""
        stopped = self._stops.get(request.session_hash)
        if stopped is not None:
            stopped.set()

    def _alpha_slider(self, number: int, alpha: float) -> gr.Slider:
        low, high = _ALPHA_RANGE
        several = len(self._setting.alphas) > 1
        return gr.Slider(
            min(low, alpha),
            max(high, alpha),
            value=alpha,
            step=0.05,
            label=f"α of pair {number + 1}" if several else "α: strength of steering",
            elem_id=f"alpha{number}",
        )

    def _tokens_slider(self) -> gr.Slider:
        most = int(self._setting.options["max_new_tokens"])
        return gr.Slider(
            1, max(_MOST_TOKENS, most), value=most, step=1, label="Most tokens per answer", elem_id="tokens"
        )


def _frame(page: str) -> str:
    """Return a frame with a page that can do nothing to the one around it."""
    return (
        '<iframe title="Token view" sandbox="allow-scripts" style="width: 100%; height: 52rem; border: 0" '
        f'srcdoc="{html.escape(page)}"></iframe>'
    )


def formats_of(formats: Mapping[str, str], pairs: Sequence[Any]) -> dict[str, str]:
    """Return the format of each role, base first; `pairs` may have formats of their own."""
    role_formats = {"base": formats["base_prompt"]}
    for number, pair in enumerate(pairs, 1):
        suffix = f"_{number}" if len(pairs) > 1 else ""
        role_formats[f"expert{suffix}"] = pair.expert_prompt or formats["expert_prompt"]
        role_formats[f"anti{suffix}"] = pair.anti_prompt or formats["anti_prompt"]
    return role_formats
