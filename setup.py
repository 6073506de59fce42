"""Put the chapters, profiles and records of the book into a wheel, as ``rdc/book``; all else stands in pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

BOOK = {"notebooks": "*.py", "profiles": "*.yaml", "results": "*.json*"}


class WithBook(build_py):
    """Copy the files of the book when a wheel is built; an editable installation reads them where they are."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            for folder, pattern in BOOK.items():
                target = Path(self.build_lib, "rdc", "book", folder)
                self.mkpath(str(target))
                for file in sorted(Path(folder).glob(pattern)):
                    self.copy_file(str(file), str(target / file.name))


setup(cmdclass={"build_py": WithBook})
