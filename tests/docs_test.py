"""What the documents say is there, is there: files, links, imports, commands, whole gin files."""

import importlib
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from opd_jax import cli
from opd_jax.configuration import build

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *(ROOT / 'docs').glob('*.md')])
FILE = re.compile(r'`((?:opd_jax|experiments|tests|docs|examples|benchmarks)/[\w./]+\.\w+)`')
LINK = re.compile(r'\]\(([^)#]+)(?:#[^)]*)?\)')
PLACEHOLDER = 'my_method'
BASE = [f'experiments/{name}.gin' for name in ('models/small', 'data/sums', 'methods/opd')]


def blocks(page: Path, language: str = '') -> list[str]:
  """The fenced blocks of a page."""
  found = re.findall(r'^```(\w*)\n(.*?)^```$', page.read_text(), flags=re.MULTILINE | re.DOTALL)
  return [text for name, text in found if name == language]


def generate():
  spec = importlib.util.spec_from_file_location('generate', ROOT / 'docs' / 'generate.py')
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_what_is_generated_is_fresh():
  module = generate()
  stale = [path.name for path in module.stale(module.pages())]
  assert not stale, f'{stale} differ from the code; run `make docs`'


def test_a_stale_page_is_seen():
  module = generate()
  page = ROOT / 'docs' / 'gin_reference.md'
  assert module.stale({page: page.read_text() + 'x'}) == [page]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_and_files_are_there(page):
  text = page.read_text()
  links = [link for link in LINK.findall(text) if not re.match(r'\w+:', link)]
  dead = [link for link in links if not (page.parent / link).exists()]
  named = [file for file in FILE.findall(text) if PLACEHOLDER not in file]
  dead += [file for file in named if not (ROOT / file).exists()]
  assert not dead, f'{page.name} names what is not there: {dead}'


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_python_of_a_page_imports_what_exists(page):
  for text in blocks(page, 'python'):
    compile(text, str(page), 'exec')
    for module, names in re.findall(r'^from (opd_jax[\w.]*) import (.+)$', text, re.MULTILINE):
      for name in names.split(', '):
        if not hasattr(importlib.import_module(module), name):
          importlib.import_module(f'{module}.{name}')


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_commands_of_a_page_have_these_flags(page):
  lines = '\n'.join(blocks(page)).replace('\\\n', ' ').splitlines()
  for line in lines:
    words = (
      shlex.split(line, comments=True) if re.match(r'(\w+=\S+ )?opd [\w-]+(\s|$)', line) else []
    )
    if words:
      cli.parser().parse_args(words[words.index('opd') + 1 :])


@pytest.mark.parametrize('number', range(len(blocks(ROOT / 'docs' / 'gin.md', 'gin'))))
def test_a_gin_file_of_the_primer_builds(number, tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  file = tmp_path / 'shown.gin'
  file.write_text(blocks(ROOT / 'docs' / 'gin.md', 'gin')[number])
  experiment, _ = build([*BASE, str(file)], [])
  assert experiment.stages
