import importlib
import sys
import textwrap

import pytest

from opd_jax import methods


@pytest.fixture
def package(tmp_path, monkeypatch):
  """A package of methods on disk: write(name, source) adds a file."""
  (tmp_path / 'shelf').mkdir()
  (tmp_path / 'shelf' / '__init__.py').touch()
  monkeypatch.syspath_prepend(tmp_path)

  def write(name, source):
    (tmp_path / 'shelf' / f'{name}.py').write_text(textwrap.dedent(source))
    for module in [m for m in sys.modules if m == 'shelf' or m.startswith('shelf.')]:
      monkeypatch.delitem(sys.modules, module)
    importlib.invalidate_caches()
    return importlib.import_module('shelf')

  return write


GOOD = '''
  from types import SimpleNamespace
  def {name}():
    """{name} in a sentence.

    More.
    """
    return SimpleNamespace(paper='arXiv:{name}')
'''


def test_a_file_is_a_method(package):
  package('zebra', GOOD.format(name='zebra'))
  found = methods.discover(package('ant', GOOD.format(name='ant')))
  assert [(m.name, m.summary, m.paper) for m in found] == [
    ('ant', 'ant in a sentence.', 'arXiv:ant'),
    ('zebra', 'zebra in a sentence.', 'arXiv:zebra'),
  ]


def test_a_file_without_its_function_is_named(package):
  with pytest.raises(ValueError, match=r'ant.py must define the function ant\(\)'):
    methods.discover(package('ant', GOOD.format(name='bee')))


def test_our_own_methods_can_be_listed():
  assert isinstance(methods.discover(), tuple)
