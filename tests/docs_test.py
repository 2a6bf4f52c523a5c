"""What the documents say is there, is there: files, links, imports, commands, whole gin files; and the site."""

import html
import importlib
import importlib.util
import json
import re
import shlex
import tomllib
from pathlib import Path
from urllib.parse import unquote

import pytest
import tiny_runs

from opd_jax import cli, methods
from opd_jax.configuration import build

ROOT = Path(__file__).parent.parent
BESIDE = [
  ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'SECURITY.md', 'launch/README.md')
]
PAGES = sorted([*BESIDE, *(ROOT / 'docs').glob('*.md')])
NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))
FILE = re.compile(r'`((?:opd_jax|experiments|tests|docs|examples|benchmarks)/[\w./]+\.\w+)`')
LINK = re.compile(r'\]\(([^)#]+)(?:#[^)]*)?\)')
PLACEHOLDER = 'my_method'
BASE = [f'experiments/{name}.gin' for name in ('models/small', 'data/sums', 'methods/opd')]


def blocks(page: Path, language: str = '') -> list[str]:
  """The fenced blocks of a page."""
  found = re.findall(r'^```(\w*)\n(.*?)^```$', page.read_text(), flags=re.MULTILINE | re.DOTALL)
  return [text for name, text in found if name == language]


def module_of(file: str):
  """A script of docs/ as a module."""
  spec = importlib.util.spec_from_file_location(Path(file).stem, ROOT / file)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_what_is_generated_is_fresh():
  module = module_of('docs/generate.py')
  stale = [path.name for path in module.stale(module.pages())]
  assert not stale, f'{stale} differ from the code; run `make docs`'


def test_a_stale_page_is_seen():
  module = module_of('docs/generate.py')
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


def commands(text: str) -> list[list[str]]:
  """The words of every line that is an `opd` command."""
  lines = text.replace('\\\n', ' ').splitlines()
  lines = [line for line in lines if re.match(r'(\w+=\S+ )?opd [\w-]+(\s|$)', line)]
  words = [shlex.split(line, comments=True) for line in lines]
  return [each[each.index('opd') + 1 :] for each in words]


def check_command(words: list[str]) -> None:
  """A whole command parses, and the gin files that it names are there."""
  args = cli.parser().parse_args(words)
  named = [file for file in getattr(args, 'gin_file', ()) if file.startswith('experiments/')]
  assert not [file for file in named if not (ROOT / file).is_file()]


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_commands_of_a_page_have_these_flags(page):
  for words in commands('\n'.join(blocks(page))):
    check_command(words)


# What the commands of pages begin with, where the pages made it before: any model of the tiny world builds.
MADE = re.compile(r'(runs|models|mine)/[\w./-]+')
TRAINED = [
  pytest.param(words, id=f'{page.stem}-{number}')
  for page in PAGES
  for number, words in enumerate(commands('\n'.join(blocks(page))))
  if words[0] in ('train', 'check', 'plan', 'gap')
  and not any(PLACEHOLDER in word for word in words)
]


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  return tiny_runs.teacher_folder(tmp_path_factory.mktemp('made'))


@pytest.mark.parametrize('words', TRAINED)
def test_the_experiment_of_a_command_builds(words, made, monkeypatch):
  monkeypatch.chdir(ROOT)
  args = cli.parser().parse_args(words)
  files = [file for file in args.gin_file or () if file.startswith('experiments/')]
  if not files or len(files) < len(args.gin_file):
    return  # of a file that the page makes; `guide_test` and `new_method_test` follow these
  bindings = [MADE.sub(made, binding) for binding in args.gin_bindings or ()]
  try:
    build(files, bindings)
  except ValueError as error:
    assert 'Qwen/' in str(error), error  # a model of the hub, which is not asked for in tests


@pytest.mark.parametrize('file', NOTEBOOKS, ids=lambda file: file.name)
def test_commands_of_a_notebook_have_these_flags(file):
  cells = [''.join(cell['source']) for cell in json.loads(file.read_text())['cells']]
  for words in commands('\n'.join(cells)):
    check_command(words)


def flags_of(words: list[str]) -> set[str]:
  return {word.partition('=')[0] for word in words if word.startswith('--')}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_commands_inside_a_sentence_have_these_flags(page):
  """These may leave out what is required."""
  [known] = [action.choices for action in cli.parser()._actions if action.dest == 'command']
  assert isinstance(known, dict)
  for text in re.findall(r'`opd ([\w-]+[^`…]*)`', page.read_text()):
    name, *rest = shlex.split(text)
    if name != PLACEHOLDER and not name.isupper():
      assert name in known, f'{page.name}: opd {text}'
      unknown = flags_of(rest) - {*known[name]._option_string_actions}
      assert not unknown, f'{page.name}: opd {text} has no {unknown}'


def test_every_method_has_a_row_among_the_systems():
  text = (ROOT / 'docs' / 'systems.md').read_text()
  rows = re.findall(r'^\| `(\w+)` \|', text, re.MULTILINE)
  assert rows == [method.name for method in methods.discover()]


def test_every_recipe_and_every_page_is_listed():
  recipes, index = ((ROOT / 'docs' / name).read_text() for name in ('recipes.md', 'index.md'))
  unlisted = [
    file.name
    for file in (ROOT / 'experiments/recipes').glob('*.gin')
    if f'/{file.name})' not in recipes
  ]
  unlisted += [page.name for page in (ROOT / 'docs').glob('*.md') if f']({page.name})' not in index]
  assert set(unlisted) <= {'index.md'}, unlisted


GIN_FILES = sorted((ROOT / 'experiments').rglob('*.gin'))


def test_the_command_of_every_gin_file_parses():
  checked = 0
  for file in GIN_FILES:
    text = re.sub(r'\\\n# *', '', file.read_text())
    for line in re.findall(r'^# Command  (opd [^…\n]*)$', text, re.MULTILINE):
      check_command(*commands(line))
      checked += 1
  assert checked > 50


GIN_BLOCKS = [
  pytest.param(text, id=f'{page.stem}-{number}')
  for page in PAGES
  for number, text in enumerate(blocks(page, 'gin'))
]


@pytest.mark.parametrize('text', GIN_BLOCKS)
def test_a_gin_file_of_a_page_builds(text, tmp_path, monkeypatch):
  monkeypatch.chdir(ROOT)
  file = tmp_path / 'shown.gin'
  file.write_text(text)
  experiment, _ = build([*BASE, str(file)], [])
  assert experiment.stages


# --- the site ---------------------------------------------------------------------------------------


def named_in(navigation) -> list[str]:
  """The pages of the navigation, whatever folders they are in."""
  if isinstance(navigation, str):
    return [navigation]
  inner = navigation.values() if isinstance(navigation, dict) else navigation
  return [page for each in inner for page in named_in(each)]


def test_the_navigation_has_every_page_once():
  settings = tomllib.loads((ROOT / 'docs' / 'zensical.toml').read_text())
  named = named_in(settings['project']['nav'])
  pages = [str(page.relative_to(ROOT)) for page in module_of('docs/build_site.py').pages()]
  assert sorted(named) == sorted(pages)


def dead_links(site: Path) -> list[str]:
  """What a page of the site links to or loads, and is neither a file of it nor an anchor there."""
  texts = {file.resolve(): file.read_text() for file in site.rglob('*.html')}
  dead = []
  for file, text in texts.items():
    for link in re.findall(r'<(?:a|img|script|link)\s[^>]*?(?:href|src)="?([^" >]+)', text):
      path, _, anchor = html.unescape(link).partition('#')
      if re.match(r'\w+:', link) or file.name == '404.html':
        continue
      target = (file.parent / unquote(path)).resolve() if path else file
      target = target / 'index.html' if target.is_dir() else target
      found = target.is_file() and (not anchor or is_anchor(texts.get(target, ''), unquote(anchor)))
      dead += [] if found else [f'{file.name}: {link}']
  return dead


def is_anchor(text: str, name: str) -> bool:
  return re.search(rf'\b(?:id|name)="?{re.escape(name)}[" >]', text) is not None


@pytest.mark.skipif(importlib.util.find_spec('zensical') is None, reason='needs the extra docs')
def test_the_site_is_built_without_dead_links_and_loads_nothing_from_elsewhere(tmp_path):
  assert module_of('docs/build_site.py').build(tmp_path) == 0
  site = tmp_path / 'site'
  assert len([*site.rglob('*.html')]) > len(PAGES)
  assert not dead_links(site)
  loaded = re.compile(
    r'<(?:script|img|iframe)\s[^>]*src="?https?:|<link\s[^>]*stylesheet[^>]*https?:'
  )
  assert not [file for file in site.rglob('*.html') if loaded.search(file.read_text())]
  (site / 'docs' / 'gin.html').unlink()
  assert 'index.html: gin.html' in dead_links(site)
