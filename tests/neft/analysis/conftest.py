"""Commands as the command line runs them, and data files."""

from __future__ import annotations

import argparse

import pytest

from tests.neft.conftest import copy_rows, write_rows


@pytest.fixture
def held_out_file(tmp_path):
    """Eight rows of the copying task that are not trained on."""
    return write_rows(tmp_path / "held_out.jsonl", copy_rows(8, seed=9))


def run_command(module, arguments, *, is_quiet=False):
    """Parses arguments with a command's own options, without defaults as `neft` does, and runs it."""
    parser = argparse.ArgumentParser(allow_abbrev=False, argument_default=argparse.SUPPRESS)
    module.add_options(parser)
    module.run(vars(parser.parse_args([str(argument) for argument in arguments])), is_quiet=is_quiet)
