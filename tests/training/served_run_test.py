"""A run with a served teacher is the run with a live one; faults, a restart and a resume do not change a bit of it."""

import dataclasses
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import served_worlds as worlds
import tiny_runs as runs
from training.multihost_test import two

from opd_jax import cli, judges
from opd_jax.losses.rest_rules import Tail
from opd_jax.losses.supports import Support, TeacherTopK
from opd_jax.methods import gkd, seqkd
from opd_jax.training import loop, pipeline, verbs

TOP = gkd.gkd(student_fraction=1.0, support=Support(entries=TeacherTopK(4), rest=Tail()))
STEPS = 20


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  return runs.teacher_folder(tmp_path_factory.mktemp('served'))


@pytest.fixture(scope='module')
def server(weights):
  with worlds.served(weights, '--rows', '4') as server:
    yield server


def experiment(folder: Path, judge, steps: int = STEPS, **changes):
  """One stage that distils, with checkpoints on the way."""
  known = runs.experiment(folder, checkpoint_every=5)
  stage = dataclasses.replace(
    known.stages[1], method=TOP, steps=steps, judges={'teacher': judge}, **changes
  )
  return dataclasses.replace(known, stages=(stage,), evaluations=())


def trained(folder: Path, judge, name: str, **options):
  settings = {
    each: options.pop(each) for each in ('method', 'steps', 'staleness') if each in options
  }
  known = experiment(folder, judge, **{'steps': settings.pop('steps', STEPS)})
  if settings:
    stage = dataclasses.replace(known.stages[0], **settings)
    known = dataclasses.replace(known, stages=(stage,))
  outcome = runs.run(known, folder / name, **options)
  rows = [row for row in runs.metrics_of(folder / name) if 'loss' in row]
  return runs.digest_of(outcome), rows


@pytest.fixture(scope='module')
def plain(tmp_path_factory, server):
  """The undisturbed run with a served teacher."""
  return trained(tmp_path_factory.mktemp('plain'), judges.served(server.url), 'served')


def test_twenty_steps_served_are_twenty_steps_live(tmp_path, weights, plain):
  _, live = trained(tmp_path, judges.frozen(weights), 'live')
  assert len(live) == len(plain[1]) == STEPS
  for one, other in zip(live, plain[1], strict=True):
    assert one.keys() == other.keys()
    for name, value in one.items():
      if isinstance(value, float | list):
        np.testing.assert_allclose(value, other[name], atol=1e-5, rtol=1e-5, err_msg=name)
      else:
        assert value == other[name], name


def test_a_server_is_asked_about_a_batch_while_the_next_is_written(
  tmp_path, weights, server, monkeypatch
):
  """With text one batch old it is the run of a live teacher on the student's devices, and asked meanwhile."""
  asked: list[tuple[float, float]] = []
  written: list[tuple[float, float]] = []

  def slowly(path, body, told):
    if body.get('max_tokens') == 0:
      begin = time.monotonic()
      time.sleep(0.05)
      asked.append((begin, time.monotonic()))
    return 200, told

  def sample(*arguments, **options):
    begin = time.monotonic()
    found = whole(*arguments, **options)
    written.append((begin, time.monotonic()))
    return found

  whole = verbs.sample
  monkeypatch.setattr(pipeline.verbs, 'sample', sample)
  known = {'steps': 6, 'staleness': 1}
  with worlds.proxied(server.url, slowly) as proxy:
    _, served = trained(tmp_path, judges.served(proxy.url, concurrency=4), 'served', **known)
  _, live = trained(tmp_path, judges.frozen(weights), 'live', **known)
  assert any(a < end and begin < b for a, b in asked for begin, end in written)
  assert [row['staleness'] for row in served] == [0, 1, 1, 1, 1, 1]
  for one, other in zip(live, served, strict=True):
    for name in ('loss', 'grad_norm', 'tokens', 'teacher/overlap', 'staleness'):
      np.testing.assert_allclose(one[name], other[name], atol=1e-5, rtol=1e-5, err_msg=name)
  told = (tmp_path / 'served' / 'metrics.jsonl').read_text()
  assert 'time/idle/student' in told and 'time/idle/teacher' in told


def test_a_fifth_of_the_replies_is_spoilt_and_the_run_is_the_same(tmp_path, server, plain):
  faults = worlds.Faults(0.2)
  with worlds.proxied(server.url, faults) as proxy:
    found = trained(tmp_path, judges.served(proxy.url, patience=60.0), 'run')
  assert found == plain
  hits, tries = sum(faults.hits.values()), faults.hit_at_most
  assert hits / tries > 0.15 and len(faults.hits) == 6, (faults.hits, tries)


def goes_at(
  step: int, server: Any, then: Callable[[], Any], say=lambda text: None
) -> loop.Listener:
  """The server goes behind a step, and something begins."""

  def look(done, total, text):
    if done == step:
      server.__exit__(None, None, None)
      then()

  return loop.Listener(say=say, progress=look)


def test_a_server_that_restarts_in_mid_run_costs_nothing_but_time(tmp_path, weights, plain):
  """It goes at step 3 and is back a second later."""
  first = worlds.served(weights, '--rows', '4')
  server = first.__enter__()
  port, back = server.server_address[1], []
  said = []

  def again():
    time.sleep(1.0)
    second = worlds.served(weights, '--rows', '4', port=port)
    second.__enter__()
    back.append(second)

  thread = threading.Thread(target=again)
  listener = goes_at(3, first, thread.start, said.append)
  found = trained(tmp_path, judges.served(server.url), 'run', listener=listener)
  thread.join()
  back[0].__exit__(None, None, None)
  assert found == plain
  assert any('fails (' in line and 'asked again for 600 s' in line for line in said), said


@pytest.mark.parametrize('staleness', [0, 1])
def test_a_run_that_waits_for_a_server_ends_and_is_kept_when_asked(tmp_path, weights, staleness):
  """The server goes behind step 3, and SIGTERM comes while it is waited for; the run goes on as if nothing had been."""
  first = worlds.served(weights, '--rows', '4')
  server = first.__enter__()
  port, began = server.server_address[1], []

  def end_soon():
    began.append(time.monotonic())
    threading.Timer(1.0, os.kill, [os.getpid(), signal.SIGTERM]).start()

  known = experiment(tmp_path, judges.served(server.url), steps=6, staleness=staleness)
  outcome = runs.run(known, tmp_path / 'run', listener=goes_at(3, first, end_soon))
  assert outcome.signal == signal.SIGTERM and outcome.position.step in (3, 4)  # 4: scored ahead
  assert time.monotonic() - began[0] < 60
  with worlds.served(weights, '--rows', '4', port=port):
    resumed = runs.run(known, tmp_path / 'run')
    still = runs.run(known, tmp_path / 'still')
  assert resumed.finished and runs.digest_of(resumed) == runs.digest_of(still)


def test_another_model_after_a_restart_stops_the_run(tmp_path, weights):
  other = runs.teacher_folder(tmp_path / 'other', seed=6)
  first = worlds.served(weights, '--name', 'teacher')
  server = first.__enter__()
  port, back = server.server_address[1], []

  def start_soon():
    back.append(threading.Timer(0.5, start))
    back[0].start()

  def start():
    second = worlds.served(other, '--name', 'teacher', port=port)
    second.__enter__()
    back.append(second)

  listener = goes_at(2, first, start_soon)
  with pytest.raises(ValueError, match='another model answers') as caught:
    trained(tmp_path, judges.served(server.url), 'run', listener=listener, steps=4)
  back[1].__exit__(None, None, None)
  assert '-system_fingerprint' in str(caught.value) and 'nats apart on average' in str(caught.value)


def test_a_resumed_run_wants_the_model_that_it_began_with(tmp_path, weights, server):
  config = "judges.served.url = '{}'\nexperiment.Experiment.stages = [@judges.served()]\n"
  known = experiment(tmp_path, judges.served(server.url), steps=4)
  stop = lambda done, total, text: __import__('signal').raise_signal(15) if done == 2 else None
  listener = loop.Listener(say=lambda text: None, progress=stop)
  options = {'config': config.format(server.url)}
  outcome = runs.run(known, tmp_path / 'run', listener=listener, **options)
  assert outcome.position.step == 2
  kept = json.loads((tmp_path / 'run' / 'served.json').read_text())
  assert kept['distil/teacher']['model'] == server.served.name
  other = runs.teacher_folder(tmp_path / 'other', seed=6)
  with worlds.served(other, '--name', server.served.name) as impostor:
    known = experiment(tmp_path, judges.served(impostor.url), steps=4)
    with pytest.raises(ValueError, match='another model answers') as caught:
      runs.run(known, tmp_path / 'run', config=config.format(impostor.url))
    assert 'log-probabilities of the probe' in str(caught.value)
  said = []
  with worlds.served(weights, '--name', server.served.name) as moved:  # the same one elsewhere
    known = experiment(tmp_path, judges.served(moved.url), steps=4)
    outcome = runs.run(
      known,
      tmp_path / 'run',
      listener=loop.Listener(say=said.append),
      config=config.format(moved.url),
    )
  assert outcome.finished and any('the same model answers' in line for line in said)


def test_a_served_teacher_writes_what_it_would_write_here(tmp_path, weights, server):
  """The student's tokens, ended as the student ends them, and again the same ones."""
  method = seqkd.seqkd()
  one = trained(tmp_path, judges.served(server.url), 'one', method=method, steps=3)
  again = trained(tmp_path, judges.served(server.url), 'again', method=method, steps=3)
  assert one == again
  lines = [json.loads(line) for line in (tmp_path / 'one' / 'samples.jsonl').open()]
  assert lines and one[1][0]['tokens'] > 8


# --- from the command line --------------------------------------------------------------------------

TOP_K = ('recipes/top32_gkd', 'judges/served')
SMALL = {
  'STEPS': 2,
  'PROMPTS': 4,
  'BUDGET': 16,
  'sums.sums.most': 3,
  'supports.TeacherTopK.k': 4,
  'evaluator.Evaluation.problems': 4,
  'evaluator.Evaluation.every': 0,
}


def words(url: str, *files: str, **bindings: object) -> list[str]:
  found = [word for file in files for word in ('--gin_file', f'experiments/{file}.gin')]
  bound = {**SMALL, 'URL': f'"{url}"', **bindings}
  return [
    *found,
    *(word for pair in bound.items() for word in ('--gin_bindings', '{} = {}'.format(*pair))),
  ]


def test_the_gin_file_from_the_command_line(tmp_path, opd, server):
  given = words(server.url, *TOP_K)
  status, out, err = opd('check', *given)
  assert status == 0 and 'top 24' in out and 'nothing was found' in out, err
  status, out, err = opd('train', *given, '--workdir', tmp_path / 'run')
  assert status == 0 and f'the model at {server.url}' in out, err
  assert 'rows scored twice, in two orders: 0 nats apart' in out
  rows = [row for row in runs.metrics_of(tmp_path / 'run') if 'loss' in row]
  assert len(rows) == 2 and all(np.isfinite(row['loss']) for row in rows)
  assert (tmp_path / 'run' / 'served.json').is_file()


def test_a_server_that_is_away_is_one_line_and_status_2(tmp_path, opd):
  nowhere = words('http://127.0.0.1:9', *TOP_K)
  for name in ('check', 'train'):
    more = ('--workdir', tmp_path / 'run') if name == 'train' else ()
    status, _, err = opd(name, *nowhere, *more)
    assert status == 2 and err.count('\n') == 1, err
    assert 'judge teacher: no server answers at http://127.0.0.1:9 (ConnectError' in err


def test_a_plan_asks_nobody_and_counts_no_memory(opd, weights):
  status, out, err = opd('plan', *words('http://127.0.0.1:9', *TOP_K), '--json')
  assert status == 0, err
  held = json.loads(out)['stages']
  assert [stage['judges'] for stage in held.values()] == [0]
  status, out, err = opd(
    'plan', *words('http://127.0.0.1:9', *TOP_K), '--compile', '--prompt', '16'
  )
  assert status == 0 and 'score' not in out.split('verb')[1] and 'gradient' in out, (out, err)


def test_serve_refuses_in_one_line(opd, weights, server):
  port = server.server_address[1]
  for arguments, text in (
    ((weights, '--port', port), 'cannot be listened on'),
    ((weights, '--layout', 'rows=2'), '--layout is AXIS=N'),
    (('nothing_here',), 'neither a folder nor a preset'),
  ):
    status, _, err = opd('serve', *arguments)
    assert status == 2 and err.count('\n') == 1 and text in err, err


def test_a_chat_that_only_writes_text_teaches(tmp_path, opd, weights):
  """Its tokens are another tokenizer's; the student reads the text."""
  asked = []

  def change(path, body, told):
    if path != '/v1/chat/completions':
      return (400 if 'error' in told else 200), told
    asked.append(body)
    number = sum(map(ord, body['messages'][-1]['content'])) + body['seed'] % 2
    message = {'role': 'assistant', 'content': f'{number % 90}+1'}
    return 200, {'choices': [{'message': message, 'finish_reason': 'stop'}]}

  chat = words('', 'models/small', 'data/sums', 'methods/seqkd', 'judges/served')
  drop = chat.index('supports.TeacherTopK.k = 4')
  del chat[drop - 1 : drop + 1]
  with worlds.served(weights) as behind, worlds.proxied(behind.url, change) as proxy:
    chat[chat.index('URL = ""')] = f'URL = "{proxy.url}"'
    chat += ['--gin_bindings', "judges.served.writes = 'text'"]
    status, out, err = opd('train', *chat, '--workdir', tmp_path / 'run')
    assert status == 0 and 'author teacher' in out, err
    opd_needs_scores = [each.replace('methods/seqkd', 'methods/opd') for each in chat]
    status, _, err = opd('check', *opd_needs_scores)
    assert status == 2 and 'scores nothing, and the method reads its scores' in err
  lines = [json.loads(line) for line in (tmp_path / 'run' / 'samples.jsonl').open()]
  texts = [line['response'] for line in lines if line['stage'] == 'train']
  assert asked and {body['temperature'] for body in asked} == {1.0}
  assert texts and all(text.endswith('+1') for text in texts), lines[0]


TWO = """
import json
from opd_jax import cli
assert cli.main(['train', *json.loads(sys.argv[4])]) == 0
"""


def test_two_processes_ask_once_and_say_the_same(tmp_path, monkeypatch, pytestconfig, server):
  """The first process asks for all rows and tells the other."""
  monkeypatch.chdir(pytestconfig.rootpath)
  given = words(server.url, *TOP_K, 'layouts/fsdp', PROMPTS=8)
  monkeypatch.setenv('JAX_NUM_CPU_DEVICES', '2')
  with worlds.proxied(server.url) as proxy:
    again = [word.replace(server.url, proxy.url) for word in given]
    two(TWO, tmp_path, json.dumps([*again, '--workdir', str(tmp_path / 'two')]), seconds=400)
  rows = [body['prompt'] for path, body in proxy.asked if body.get('max_tokens') == 0]
  assert cli.main(['train', *given, '--workdir', str(tmp_path / 'one')]) == 0
  found = [
    [row for row in runs.metrics_of(tmp_path / name) if 'loss' in row] for name in ('one', 'two')
  ]
  assert rows
  for one, other in zip(*found, strict=True):
    for what in ('loss', 'grad_norm', 'tokens'):
      np.testing.assert_allclose(one[what], other[what], rtol=1e-4)
