"""Puts the start-up files at the root of site-packages; everything else is in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

STARTUP = Path("startup")


class BuildWithStartup(build_py):
    """``build_py`` that also ships ``startup/``, in wheels and in editable installs alike.

    Setuptools knows no data files for the root of site-packages. A wheel takes whatever lies
    in ``build_lib``; an editable install ignores that folder, but lets ``install_lib`` point
    at the wheel that it is about to pack. Both list the files in RECORD, so that uninstalling
    removes them.
    """

    def run(self) -> None:
        """Build as usual, then copy the file where this kind of installation needs it."""
        super().run()
        if self.editable_mode:
            root = Path(self.get_finalized_command("install").install_lib)
        else:
            root = Path(self.build_lib)
        root.mkdir(parents=True, exist_ok=True)
        for file in sorted(STARTUP.iterdir()):
            self.copy_file(str(file), str(root / file.name))


setup(cmdclass={"build_py": BuildWithStartup})
