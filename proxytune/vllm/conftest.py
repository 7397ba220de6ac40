"""Doctest collection imports every module, and most here need vLLM, which is optional: tests/vllm covers them."""

collect_ignore_glob = ["*.py"]
