"""An argument parser whose complaints take the same way out as every other error."""

import argparse
from typing import NoReturn

from proxytune.errors import OptionError


class Parser(argparse.ArgumentParser):
    """A parser that raises where argparse would print and exit."""

    def error(self, message: str) -> NoReturn:
        """Raise OptionError with argparse's sentence."""
        raise OptionError(f"{message.rstrip('.')}: see `{self.prog} --help`.")
