"""What pyproject.toml cannot say: in a wheel the folder `benchmarks` is the package `proxytune_benchmarks`.

Others' packages may have a folder of that name, too. A checkout, and an editable install of one, keeps its own name.
"""

import re
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

_FOLDER, _PACKAGE = "benchmarks", "proxytune_benchmarks"
_NAME = re.compile(rf"(?<![\w/]){_FOLDER}(?=\.[a-z]| import )|(?<=-m ){_FOLDER}")


class BuildRenamed(build_py):
    """Builds as ever, then renames the package, also where its modules name each other."""

    def run(self) -> None:
        """Write the modules to the build folder."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, _FOLDER).rename(Path(self.build_lib, _PACKAGE))
        for path in target.rglob("*.py"):
            path.write_text(_NAME.sub(_PACKAGE, path.read_text(encoding="utf-8")), encoding="utf-8")


setup(cmdclass={"build_py": BuildRenamed})
