"""A plan of programs that an earlier plan compiled is answered from the folder, and only such a plan is."""

import gzip
import json
import re

import jax
import jax.numpy as jnp
import pytest

from opd_jax import cli
from opd_jax.planning import kept, traffic

FILES = ('models/small', 'data/sums', 'methods/sft')
PLAN = ['plan', *(word for name in FILES for word in ('--gin_file', f'experiments/{name}.gin'))]
PLAN += ['--compile', '--chip', 'h100', '--prompt', '32', '--json']
FIGURES = ('verb', 'name', 'times', 'peak', 'beside', 'sent', 'loop', 'total', 'refused')


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  return tmp_path


@pytest.fixture
def told(capsys):
  def plan(*more: str):
    assert cli.main([*PLAN, *more]) == 0
    [stage] = json.loads(capsys.readouterr().out)['compiled']
    return stage['programs']

  return plan


def lowered(size: int = 8):
  return jax.jit(lambda x: jnp.tanh(x @ x.T)).lower(jax.ShapeDtypeStruct((size, 4), jnp.float32))


def ask(program):
  return kept.asked(program, jax.devices()[:1])


def test_a_second_plan_says_the_same_and_only_what_a_binding_changes_is_compiled(told):
  first = told()
  again = told()
  assert all(each['kept'] for each in again)
  figures = lambda of: [[each[name] for name in FIGURES] for each in of]
  assert figures(again) == figures(first)
  assert [each['seconds'] for each in again] == [each['seconds'] for each in first]
  cut = told('--gin_bindings', 'experiment.Stage.microbatches = 2')
  new = {each['name'].split()[0] for each in cut if not each['kept']}
  old = {each['name'].split()[0] for each in cut if each['kept']}
  assert 'gradient' in new and {'apply', 'weigh'} <= old


def test_the_table_says_how_many_were_known(capsys):
  words = [word for word in PLAN if word != '--json']
  cli.main(words)
  first = capsys.readouterr().out
  known = re.compile(r'compiled (\d+) programs in .* s(?:; (\d+) known already)?\n')
  new, same = known.search(first).groups(default='0')
  cli.main(words)
  again = capsys.readouterr().out
  assert int(new) > 0
  assert known.search(again).groups() == ('0', str(int(new) + int(same)))


def test_what_is_not_the_same_is_asked_anew(monkeypatch):
  devices = jax.devices()
  key = kept.fingerprint(lowered(), devices[:1])
  assert key == kept.fingerprint(lowered(), devices[:1])
  others = [kept.fingerprint(lowered(9), devices[:1]), kept.fingerprint(lowered(), devices[:2])]
  monkeypatch.setenv('LIBTPU_INIT_ARGS', '--xla_tpu_something=1')
  others.append(kept.fingerprint(lowered(), devices[:1]))
  monkeypatch.undo()
  monkeypatch.setattr(kept.metadata, 'version', lambda name: '0.0.1')
  others.append(kept.fingerprint(lowered(), devices[:1]))
  assert len({key, *others}) == 5


def test_a_refusal_is_kept_too(monkeypatch):
  def full(_):
    raise RuntimeError('RESOURCE_EXHAUSTED: out of room\nUsed 40G of 16G hbm. Exceeded by 24G.')

  monkeypatch.setattr(traffic, 'printed', full)
  program = lowered()
  assert kept.compiled(program, 'tpu').refused == 'Used 40G of 16G hbm. Exceeded by 24G.'

  class Chip:
    platform, device_kind, id = 'tpu', 'a chip', 0

  assert not kept.asked(program, [Chip()]).kept
  again = kept.asked(program, [Chip()])
  assert again.kept and again.refused == 'Used 40G of 16G hbm. Exceeded by 24G.'


def test_another_failure_is_an_error_and_not_kept(monkeypatch, home):
  monkeypatch.setattr(jax.stages.Lowered, 'compile', lambda _: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    ask(lowered())
  assert not (home / 'opd_jax' / 'plans').exists()


@pytest.mark.parametrize(
  'data',
  [
    b'',
    b'{"peak": 1}',
    *(gzip.compress(each, mtime=0) for each in (b'', b'[]', b'{"peak": 1, "colour": 2}')),
  ],
  ids=['empty', 'not packed', 'nothing packed', 'a list', 'another record'],
)
def test_a_damaged_answer_is_asked_for_again(data):
  first = ask(lowered())
  [file] = kept.folder().iterdir()
  whole = file.read_bytes()
  for damage in (data, whole[:-9], whole[:40] + b'x' * 40):
    file.write_bytes(damage)
    assert not ask(lowered()).kept
    again = ask(lowered())
    assert again.kept and again.peak == first.peak and again.sent == first.sent


def test_a_folder_that_cannot_be_written_and_a_wish_for_none_compile(home, monkeypatch):
  (home / 'opd_jax').write_text('a file where the folder should be')
  assert ask(lowered()).peak == ask(lowered()).peak > 0
  assert not ask(lowered()).kept
  (home / 'opd_jax').unlink()
  jax.config.update('jax_enable_compilation_cache', False)
  try:
    ask(lowered())
    assert not ask(lowered()).kept and not kept.folder().exists()
  finally:
    jax.config.update('jax_enable_compilation_cache', True)
