"""rollouts.jsonl tells what happened, changes no number, stays within its bounds and survives interruptions."""

import dataclasses
import json
import re

import numpy as np
import pytest
import tiny_runs as runs

from opd_jax import judges
from opd_jax.data.tiny_worlds import sums
from opd_jax.data.tokenizers import ByteTokenizer
from opd_jax.inference.decode_programs import Recording
from opd_jax.inference.sampler import Sampling
from opd_jax.methods import opd, rethinking_opd, topd
from opd_jax.training import loop, recorder, rollout_records, verbs
from opd_jax.training.rollout_records import RolloutRecords
from opd_jax.training.state import RunPosition

SETTINGS = RolloutRecords(every=2, rows=5, top_k=3)


@pytest.fixture(scope='module')
def recorded(tmp_path_factory):
  folder = tmp_path_factory.mktemp('recorded')
  outcome = runs.run(runs.experiment(folder, rollouts=SETTINGS), folder / 'run')
  return folder, outcome, recorder.read_lines(folder / 'run' / recorder.ROLLOUTS)


def test_every_other_step_and_the_first_have_a_record_of_bounded_rows(recorded):
  _, _, rows = recorded
  counts = {step: sum(row['step'] == step for row in rows) for step in range(1, 7)}
  assert counts == {1: 4, 2: 4, 3: 0, 4: 5, 5: 0, 6: 5}


def test_lists_have_an_entry_for_each_token(recorded):
  _, _, rows = recorded
  for row in rows:
    numbers = [each for name in ('logp', 'entropy', 'coefficients') for each in row[name].values()]
    lists = [each[part] for each in row['top_k'].values() for part in ('ids', 'logp')]
    for each in (row['ids'], row['writer'], row['counts'], *numbers, *lists):
      assert len(each) == row['length']
  taught, own = rows[0], rows[-1]
  assert set(taught['writer']) == {'d'} and taught['reward'] == 1.0
  assert set(own['writer']) == {'s'} and set(own['logp']) == {'student', 'teacher'}
  assert len(own['top_k']['teacher']['ids'][0]) == 3
  names = {name.split(' on ')[0] for name in own['coefficients']}
  assert names == {'forward_kl', 'PolicyGradient'}


def test_pieces_put_together_are_the_response(recorded):
  tokenizer = sums.tokenizer()
  for row in recorded[2]:
    text = ''.join(row['pieces'][str(token)] for token in row['ids'])
    assert re.sub('<[^>]*>', '', text) == tokenizer.decode(row['ids'])


def test_numbers_are_those_of_the_evidence(tmp_path):
  named = {'teacher': judges.frozen(runs.teacher_folder(tmp_path))}
  runtime, state = runs.at_work(tmp_path, named)
  position = RunPosition()
  responses = verbs.sample(runtime, state.weights, runtime.stream().take(4), position)
  evidence = verbs.score(runtime, state.weights, responses, position)
  terms = verbs.weigh(runtime, state.weights, evidence)[0].terms
  rows = rollout_records.record_of(
    responses, evidence, terms, runtime.tokenizer, RolloutRecords(), step=1, stage='distil'
  )
  for number, row in enumerate(rows):
    n = row['length']
    for name in ('student', 'teacher'):
      np.testing.assert_allclose(
        row['logp'][name], evidence.scores[name].logp[number, :n], rtol=1e-3
      )
    coefficient = row['coefficients']['PolicyGradient']
    np.testing.assert_allclose(coefficient, terms[0].coefficient[number, :n], rtol=1e-3)
    best = row['top_k']['teacher']
    assert best['ids'] == evidence.scores['teacher'].top_k.ids[number, :n].tolist()


def record_by(folder, method, **stage):
  """The record of a batch of a method."""
  named = {'teacher': judges.frozen(runs.teacher_folder(folder))}
  runtime, state = runs.at_work(folder, named, method=method, **stage)
  position = RunPosition()
  responses = verbs.sample(runtime, state.weights, runtime.stream().take(4), position)
  evidence = verbs.score(runtime, state.weights, responses, position, state.memory)
  terms = verbs.weigh(runtime, state.weights, evidence)[0].terms
  rows = rollout_records.record_of(
    responses, evidence, terms, runtime.tokenizer, RolloutRecords(), step=1, stage='distil'
  )
  assert len(rows) == len(responses.problems)
  for row in rows:
    assert {len(each) for each in row['coefficients'].values()} == {row['length']}
  return rows[0]


def test_what_the_sampler_noted_of_the_student_is_kept(tmp_path):
  sampling = Sampling(budget=16, slots=8, recording=Recording(entropy=True, top_k=4))
  row = record_by(tmp_path, opd.opd(), sampling=sampling)
  assert all(value >= 0 for value in row['entropy']['student'])
  assert set(row['top_k']) == {'student', 'teacher'}
  assert len(row['top_k']['student']['ids'][0]) == 4


def test_a_judge_at_the_students_best_has_a_list_of_its_own(tmp_path):
  row = record_by(tmp_path, rethinking_opd.rethinking_opd(k=4))
  lists = row['top_k']
  assert lists["teacher, at the student's best"]['ids'] == lists['student']['ids']


def test_forks_are_no_responses(tmp_path):
  row = record_by(tmp_path, topd.topd())
  assert row['logp'].keys() == {'student', 'teacher'}


def test_a_piece_that_is_no_whole_character_has_its_name():
  tokenizer = ByteTokenizer()
  names = tokenizer.strings()
  pieces = [rollout_records.piece_of(token, tokenizer, names) for token in (65, 0xC3, 257, 999)]
  assert pieces == ['A', 'Ã', names[257], '<999>']


def test_recording_changes_no_number(recorded, tmp_path):
  folder, outcome, _ = recorded
  without = runs.run(runs.experiment(folder, rollouts=None), tmp_path)
  assert runs.metrics_of(tmp_path) == runs.metrics_of(folder / 'run')
  assert runs.digest_of(without) == runs.digest_of(outcome)
  assert not (tmp_path / recorder.ROLLOUTS).exists()


class Power(Exception):
  """The plug is pulled."""


@pytest.mark.parametrize('at', [3, 5])
def test_an_interrupted_run_keeps_the_same_lines_once(recorded, tmp_path, at):
  folder, _, _ = recorded
  experiment = runs.experiment(folder, rollouts=dataclasses.replace(SETTINGS, every=1))

  def pull(done, total, text):
    if done == at:
      raise Power

  with pytest.raises(Power):
    listener = loop.Listener(say=lambda text: None, progress=pull)
    runs.run(experiment, tmp_path / 'cut', listener=listener)
  with open(tmp_path / 'cut' / recorder.ROLLOUTS, 'a') as stream:
    stream.write('{"step": 3, "sta')  # a kill in the middle of a line
  runs.run(experiment, tmp_path / 'cut')
  runs.run(experiment, tmp_path / 'whole')
  texts = [(tmp_path / name / recorder.ROLLOUTS).read_text() for name in ('cut', 'whole')]
  assert texts[0] == texts[1]


def test_a_full_file_takes_no_more_and_says_so_once(tmp_path):
  said = []
  log = recorder.Recorder(tmp_path, begin=-1, is_writer=True, say=said.append)
  record = lambda step, size: [{'step': step, 'text': 'x' * size}]
  for step, size in ((1, 600_000), (2, 600_000), (3, 600_000), (4, 400_000)):
    log.rollouts(record(step, size), mib=1)
  log.close()
  kept = recorder.read_lines(tmp_path / recorder.ROLLOUTS)
  assert [row['step'] for row in kept] == [1, 4]
  assert (
    len(said) == 1
    and 'rollouts.jsonl, step 2: the next response would not fit into 1 MiB' in said[0]
  )


def test_other_processes_write_nothing(tmp_path):
  recorder.Recorder(tmp_path, begin=-1, is_writer=False).rollouts([{'step': 1}], mib=1)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('bad', [{'every': 0}, {'rows': 0}, {'top_k': -1}, {'mib': 0}])
def test_settings_that_cannot_be_are_refused(bad):
  with pytest.raises(ValueError, match=rf'RolloutRecords: {next(iter(bad))} must be a whole'):
    RolloutRecords(**bad)


def test_a_line_that_is_no_json_is_named(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text(json.dumps({'step': 1}) + '\nnonsense\n{"step"')
  with pytest.raises(ValueError, match=r'metrics\.jsonl, line 2: this is not JSON'):
    recorder.read(tmp_path)
