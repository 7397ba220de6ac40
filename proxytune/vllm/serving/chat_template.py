"""A prompt format as the Jinja chat template that vLLM's server renders conversations with."""

import json

from proxytune.prompts import TEMPLATES, Template

_CONTENT = "{content}"
_PROMPT = "{prompt}"
_CHECKED = (
    "{%- if message['role'] not in ('system', 'user', 'assistant')"
    " or message['role'] == 'system' and not loop.first -%}"
    "{{- raise_exception('messages have the roles system (only the first), user and assistant') -}}"
    "{%- endif -%}"
)


def chat_template(name: str) -> str | None:
    """Return the template of a format, which writes what `PromptFormat(name).text` writes; None for `chat`.

    `chat` is the tokenizer's own. The first token (BOS) is in none: the tokenizer adds it, as in `PromptFormat`.
    """
    if name == "chat":
        return None
    if name in TEMPLATES:
        return _of_named(TEMPLATES[name])
    text = f"{{%- set text = namespace(all='') -%}}{_each(_JOINED)}"
    if name == "raw":
        return text + "{{- text.all -}}"
    parts = [_literal(part) for part in name.split(_PROMPT)]
    return text + "{{- " + " ~ text.all ~ ".join(parts) + " -}}"


_JOINED = "{%- set text.all = text.all ~ ('' if loop.first else '\\n\\n') ~ message['content'] -%}"


def _of_named(template: Template) -> str:
    user = _written(template.user)
    if template.first_user is not None:
        user = (
            "{%- if not loop.first and loop.previtem['role'] == 'system' -%}"
            f"{_written(template.first_user)}{{%- else -%}}{user}{{%- endif -%}}"
        )
    message = (
        "{%- if message['role'] == 'system' -%}" + _written(template.system) + "{%- elif message['role'] == 'user' -%}"
        f"{user}{{%- else -%}}{_written(template.assistant)}{{%- endif -%}}"
    )
    start = ""
    if template.preamble:
        start = f"{{%- if messages[0]['role'] != 'system' -%}}{_shown(template.preamble)}{{%- endif -%}}"
    return start + _each(message) + _shown(template.opening)


def _each(body: str) -> str:
    return f"{{%- for message in messages -%}}{_CHECKED}{body}{{%- endfor -%}}"


def _written(form: str) -> str:
    """Return what writes a message in one of a template's forms."""
    return "{{- " + " ~ message['content'] ~ ".join(_literal(part) for part in form.split(_CONTENT)) + " -}}"


def _shown(text: str) -> str:
    return "{{- " + _literal(text) + " -}}"


def _literal(text: str) -> str:
    """Return a text as Jinja writes it; whatever is in it, it is data and no template."""
    return json.dumps(text, ensure_ascii=False)
