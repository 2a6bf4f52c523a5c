"""Builds the documentation as a site, build/site/index.html, which opens without a server and without a network.

python docs/build_site.py

A page may link to any file of the repository. So the pages keep their places, below build/pages, and the files that
they link to lie beside them. A link to what is not there ends the build.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
BESIDE = 'README.md', 'CONTRIBUTING.md', 'BUILD_NOTES.md', 'SECURITY.md', 'benchmarks/RESULTS.md'
LINK = re.compile(r'\]\(([^)#:]+)(?:#[^)]*)?\)')


def pages() -> list[Path]:
  """Every page of the site."""
  beside = (ROOT / name for name in BESIDE)
  return [*sorted((ROOT / 'docs').glob('*.md')), *filter(Path.is_file, beside)]


def linked(page: Path) -> list[Path]:
  """The files of the repository that a page links to."""
  files = [(page.parent / link).resolve() for link in LINK.findall(page.read_text())]
  return [file for file in files if file.is_file() and file.is_relative_to(ROOT)]


def build(folder: Path) -> int:
  """Makes `pages` and `site` in a folder; returns the exit status of the generator."""
  shutil.rmtree(folder / 'pages', ignore_errors=True)
  for file in {*pages(), *(file for page in pages() for file in linked(page))}:
    copy = folder / 'pages' / file.relative_to(ROOT)
    copy.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, copy)
  shutil.copy(ROOT / 'docs' / 'zensical.toml', folder)
  command = [sys.executable, '-m', 'zensical', 'build', '--clean', '--strict']
  return subprocess.run(command, cwd=folder, env={**os.environ, 'NO_COLOR': '1'}).returncode


if __name__ == '__main__':
  sys.exit(build(ROOT / 'build'))
