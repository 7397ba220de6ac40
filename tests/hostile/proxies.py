"""Changes of a proxy folder."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from proxytune.own_paths import path_mark
from tests.hostile.changes import BAD_JSON, Change, edited, removed, written

Config = dict[str, Any]

ENTRIES: dict[str, tuple[Any, ...]] = {
    "base": (
        *(None, 7, "text", [], {}),
        *({"source": source} for source in (7, "/nowhere", "/dev/zero", "")),
    ),
    "pairs": (None, 7, "text", [], [7], [None], {}, [{}], [{"expert": 7, "anti": 7}]),
    "base_prompt": (None, 7, "nothing", ["raw"]),
    "expert_prompt": (7, "nothing", {}),
    "vocab_size": ("many", -1, [], 2.5),
    "rule": (7, "nothing", ["proxy"], "os"),
}
ROLE_SETTINGS: tuple[Config, ...] = (
    {"trust_remote_code": True},
    {"dtype": 7},
    {"dtype": "os"},
    {"quantization": 7},
    {"quantization": "2bit"},
    {"revision": 7},
    {"device_map": "auto"},
    {"remote": 7},
    {"source": "openai:a", "remote": {"base_url": 7}},
    {"source": "openai:a", "remote": {"base_url": "file:///etc/passwd"}},
    {"source": "openai:a", "remote": {"base_url": "http://localhost:1/v1", "nothing": 7}},
)
PAIR_SETTINGS: dict[str, tuple[Any, ...]] = {
    "alpha": (None, "one", [], {}, float("nan"), float("inf"), True, 10**400),
    "expert": ({"source": "/nowhere"}, {"source": 7}, 7, None, {}, {"source": "../../../../etc"}),
    "anti": ({"source": "/nowhere"}, {"source": 7}, 7, None, {}, {"source": "../../../../etc"}),
    "expert_prompt": (7, "nothing", ["raw"]),
}


def proxy_cases() -> Iterator[tuple[str, Change]]:
    """Yield changes of a proxy folder."""
    for key, values in ENTRIES.items():
        for number, value in enumerate(values):
            yield f"proxy {key} {number}", edited("config.json", **{key: value})
    for number, settings in enumerate(ROLE_SETTINGS):
        yield f"proxy of a base with {number}", _of_config(lambda config, own=settings: config["base"].update(own))
    for key, values in PAIR_SETTINGS.items():
        for number, value in enumerate(values):
            yield (
                f"proxy of a pair with {key} {number}",
                _of_config(lambda config, own={key: value}: config["pairs"][0].update(own)),
            )
    for file in ("config.json", "generation_config.json", "tokenizer.json"):
        for name, data in BAD_JSON.items():
            yield f"proxy {file} {name}", written(file, data)
    yield "proxy of 2000 pairs", _of_config(_repeat_pair)
    yield "proxy without config.json", removed("config.json")
    yield "proxy of itself", lambda folder: edited("config.json", base={"source": str(folder)})(folder)
    yield "proxy eos ids of text", edited("generation_config.json", eos_token_id="end")
    yield "proxy eos ids beyond", edited("generation_config.json", eos_token_id=[10**9])


def name_absolutely(folder: Path) -> None:
    """Have a proxy folder name its roles by absolute paths, so that a copy of it is as sound."""

    def change(config: Config) -> None:
        entries = (config["base"], *(pair[role] for pair in config["pairs"] for role in ("expert", "anti")))
        for entry in entries:
            entry["source"] = str((folder / entry["source"]).resolve())
        config["path_mark"] = path_mark(entry["source"] for entry in entries)

    _of_config(change)(folder)


def _of_config(change: Callable[[Config], Any]) -> Change:
    """Return a change of a proxy folder's config."""

    def changed(folder: Path) -> None:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        change(config)
        path.write_text(json.dumps(config))

    return changed


def _repeat_pair(config: Config) -> None:
    """Make 2,000 pairs of one, each under a prompt format of its own, so that none is shared."""
    [pair] = config["pairs"]
    config["pairs"] = [{**pair, "expert_prompt": f"{number} {{prompt}}"} for number in range(2000)]
