"""Doctest collection imports every module, and most here need lm-eval, which is optional."""

collect_ignore_glob = ["*.py"]
