"""The size of a greedy token's path through our code: printed, so that growth is seen (`pytest -s`)."""

import sys
from pathlib import Path
from types import FrameType
from typing import Any

import proxytune
from proxytune import ProxyGenerator
from proxytune.demo import trio_path

ROOT = str(Path(proxytune.__file__).parent)


def test_classes_and_files_on_a_greedy_tokens_path() -> None:
    """Files, and classes whose code runs, for a whole answer and for one step of the loop, on the bundled trio."""
    roles = [trio_path() / role for role in ("base", "expert", "anti")]
    generator = ProxyGenerator(*roles, speculation="off")
    files: dict[str, set[str]] = {"answer": set(), "step": set()}
    classes: dict[str, set[str]] = {"answer": set(), "step": set()}
    in_step = 0

    def note(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal in_step
        code = frame.f_code
        if code.co_qualname == "DecodeLoop._step":
            in_step += {"call": 1, "return": -1}.get(event, 0)
        if event != "call" or not code.co_filename.startswith(ROOT):
            return
        file, owner = code.co_filename[len(ROOT) + 1 :], code.co_qualname.split(".")[0]
        for part in ("answer", "step") if in_step else ("answer",):
            files[part].add(file)
            if "." in code.co_qualname and owner.lstrip("_")[:1].isupper():
                classes[part].add(f"{file}:{owner}")

    sys.setprofile(note)
    try:
        generator.generate([[5, 6, 7]], max_new_tokens=3, ignore_eos=True)
    finally:
        sys.setprofile(None)
    for part in ("answer", "step"):
        print(f"\n{part}: {len(classes[part])} classes in {len(files[part])} files: {', '.join(sorted(files[part]))}")
    assert "hf/decoding/loop.py" in files["step"] < files["answer"]
