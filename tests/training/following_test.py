"""What follows a row of metrics: gated judges in whole runs, what a checkpoint keeps of them, and what is refused."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny_runs as runs

from opd_jax import judges, rollouts
from opd_jax.data.problems import question
from opd_jax.judges.gates import Improved, RewardRose
from opd_jax.methods import opd
from opd_jax.ramps import Ramp
from opd_jax.training import inspection, loop

OFTEN = RewardRose(every=1, apart=2, margin=None, tail=None, window=1)


def shown(scene):
  """The question with a token more, so that the judge is not the student even where their weights are equal."""
  return question(scene.problem.messages[0]['content'] + '1')


def experiment(folder, gate, **changes):
  """One stage with a judge that is the student, gated; a prefix that shortens beside it."""
  teacher = {'teacher': judges.itself(refresh=judges.gated(by=gate), context=shown)}
  mix = rollouts.student(prefix=Ramp(begin=3, end=0, steps=4))
  distil = {'method': opd.opd(), 'judges': teacher, 'rollout': mix, 'steps': 6, **changes}
  known = runs.experiment(folder, distil=distil)
  return dataclasses.replace(known, stages=known.stages[1:])


def moved_at(rows):
  return [row['step'] for row in rows if 'refresh/teacher' in row]


def test_a_gated_judge_is_the_student_at_its_last_renewal(tmp_path):
  known = experiment(tmp_path, OFTEN)
  outcome = runs.run(known, tmp_path / 'run')
  rows = runs.metrics_of(tmp_path / 'run')
  assert moved_at(rows) == [2, 4, 6]
  sizes = [row['refresh/teacher'] for row in rows if 'refresh/teacher' in row]
  assert min(sizes) > 0
  for one, other in zip(
    jax.tree.leaves(outcome.state.snapshots['teacher']),
    jax.tree.leaves(outcome.state.params),
    strict=True,
  ):
    np.testing.assert_array_equal(one, other)  # renewed behind the last update


def test_the_size_of_a_renewal_is_the_distance_of_the_weights(tmp_path):
  known = experiment(tmp_path, OFTEN, steps=2)
  short = experiment(tmp_path, OFTEN, steps=1)
  before = runs.run(short, tmp_path / 'short').state  # never renewed so far
  after = runs.run(known, tmp_path / 'run').state
  gaps = jax.tree.map(
    lambda phi, theta: np.square(np.asarray(theta, np.float64) - np.asarray(phi)).sum(),
    before.snapshots['teacher'],
    after.params,
  )
  (size,) = [
    row['refresh/teacher'] for row in runs.metrics_of(tmp_path / 'run') if 'refresh/teacher' in row
  ]
  assert size == pytest.approx(np.sqrt(sum(jax.tree.leaves(gaps))), rel=1e-5)


def test_a_judge_that_moves_by_itself_says_so_in_every_step_that_it_does(tmp_path):
  teacher = {'teacher': judges.itself(refresh=judges.every(2), context=shown)}
  runs.run(experiment(tmp_path, OFTEN, judges=teacher), tmp_path / 'run')
  assert moved_at(runs.metrics_of(tmp_path / 'run')) == [2, 4, 6]


def test_an_evaluation_opens_a_gate(tmp_path):
  """Where it opens is where the recorded readings say so; one of two metrics that end elsewhere rises."""
  opened = []
  for metric in ('eval/sums/entropy', 'eval/sums/length'):
    gate = Improved(metric=metric)
    runs.run(experiment(tmp_path, gate), tmp_path / metric)
    memory, want = {}, []
    for row in runs.metrics_of(tmp_path / metric):
      memory, opens = gate.after(memory, row)
      want += [row['step']] * opens
      assert ('refresh/teacher' in row) == opens
    opened += want
  assert opened


@pytest.mark.parametrize(
  'gate', [OFTEN, Improved(metric='eval/sums/entropy')], ids=['reward', 'eval']
)
def test_a_run_that_was_cut_off_renews_at_the_same_steps(tmp_path, gate):
  known = experiment(tmp_path, gate)
  whole = runs.run(known, tmp_path / 'whole')
  for cut in (1, 3, 5):

    def pull(done, total, text, cut=cut):
      if done == cut:
        raise KeyboardInterrupt

    listener = loop.Listener(say=lambda text: None, progress=pull)
    with pytest.raises(KeyboardInterrupt):
      runs.run(known, tmp_path / f'cut{cut}', listener=listener)
    resumed = runs.run(known, tmp_path / f'cut{cut}')
    assert runs.digest_of(resumed) == runs.digest_of(whole)
    assert runs.metrics_of(tmp_path / f'cut{cut}') == runs.metrics_of(tmp_path / 'whole')


def test_a_gate_on_what_is_never_measured_is_refused(tmp_path):
  look = lambda known: inspection.check(known, lambda text: None)
  known = experiment(tmp_path, RewardRose())
  look(known)
  unverified = dataclasses.replace(known.stages[0].task, verify=None)
  with pytest.raises(ValueError, match=r'gate of the judge teacher looks at reward.*no verifier'):
    look(experiment(tmp_path, RewardRose(), task=unverified))
  look(experiment(tmp_path, RewardRose(margin=None), task=unverified))
  with pytest.raises(ValueError, match=r"looks at eval/maths/avg@1.*report \['eval/sums/'\]"):
    look(experiment(tmp_path, Improved(metric='eval/maths/avg@1')))
  with pytest.raises(ValueError, match=r"looks at eval/sums/avg@4.*reports \['avg@1'"):
    look(experiment(tmp_path, Improved(metric='eval/sums/avg@4')))
