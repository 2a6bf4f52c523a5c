"""The gap meter and the predictive law: against worlds whose numbers are known, and against other implementations."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import tiny_runs as runs
from scipy import stats

from opd_jax import cli, judges
from opd_jax import responses as batches
from opd_jax.data.problems import question
from opd_jax.inference import sampler
from opd_jax.judges import contexts
from opd_jax.methods import opd
from opd_jax.studies import predictive_law
from opd_jax.training import gap, writers
from opd_jax.training.state import RunPosition
from opd_jax.types import ScoreRequest

RNG = np.random.default_rng(3)
GAPS = RNG.uniform(-0.1, 0.4, 9)


def test_a_known_law_is_found_exactly():
  law = predictive_law.fit(GAPS, 1.492 * GAPS - 0.003)
  assert law.slope == pytest.approx(1.492, rel=1e-12)
  assert law.intercept == pytest.approx(-0.003, rel=1e-10)
  assert law.r_squared == pytest.approx(1, abs=1e-12) and law.left_out < 1e-12
  assert max(law.slope_error, law.intercept_error) < 1e-12


def test_errors_are_those_of_least_squares():
  gains = 0.7 * GAPS + 0.02 * RNG.standard_normal(9)
  law, want = predictive_law.fit(GAPS, gains), stats.linregress(GAPS, gains)
  found = (law.slope, law.intercept, law.slope_error, law.intercept_error, law.correlation)
  assert found == pytest.approx(
    (want.slope, want.intercept, want.stderr, want.intercept_stderr, want.rvalue), rel=1e-10
  )
  assert law.r_squared == pytest.approx(want.rvalue**2, rel=1e-10)
  lines = [
    (np.polyfit(np.delete(GAPS, i), np.delete(gains, i), 1), GAPS[i], gains[i]) for i in range(9)
  ]
  left_out = [np.polyval(line, x) - y for line, x, y in lines]
  assert law.left_out == pytest.approx(np.sqrt(np.mean(np.square(left_out))), rel=1e-10)


def test_intervals_hold_the_law_as_often_as_they_say():
  """400 synthetic laws: 95 % of the intervals hold the true slope, up to three standard errors of that count."""
  held = 0
  for _ in range(400):
    law = predictive_law.fit(GAPS, 1.5 * GAPS + 0.1 + 0.05 * RNG.standard_normal(9))
    low, high = law.slope_interval
    held += low < 1.5 < high
  assert abs(held - 380) < 3 * np.sqrt(400 * 0.95 * 0.05)


def test_too_few_points_say_so():
  law = predictive_law.fit([0.0, 0.1], [0.1, 0.2])
  assert law.slope == pytest.approx(1.0) and np.isnan([law.slope_error, law.left_out]).all()
  for gaps in ([0.1], [0.1, 0.1, 0.1]):
    with pytest.raises(ValueError, match='at least two points of different gaps'):
      predictive_law.fit(gaps, [0.1] * len(gaps))


# --- the meter --------------------------------------------------------------------------------------


def measured(folder, context, verify, **changes):
  """The gap of a random student and itself under a context, with the runtime and the state."""
  teacher = {'teacher': judges.itself(context=context)}
  runtime, state = runs.at_work(folder, teacher, method=opd.opd(), samples=2, **changes)
  evaluation = runtime.experiment.evaluations[0]
  task = dataclasses.replace(evaluation.task, verify=verify)
  problems = evaluation.chosen
  return gap.measure(runtime, state, task, problems, samples=3), runtime, state


def test_a_teacher_that_sees_nothing_more_has_no_divergence(tmp_path):
  found, *_ = measured(tmp_path, None, lambda problem, text: 1.0)
  assert (found.student, found.teacher, found.gap, found.shown) == (1.0, 1.0, 0.0, 1.0)
  assert abs(found.reverse_kl) < 1e-6 and abs(found.forward_kl) < 1e-6


def test_the_accuracies_are_those_of_two_texts_and_the_divergences_exact(tmp_path):
  """The verifier counts by calls: the student's texts come first, all wrong, then the teacher's, all right."""
  calls = []

  def verify(problem, text):
    calls.append(text)
    return float(len(calls) > 12)

  solved = contexts.solution(introduction=':')
  found, runtime, state = measured(tmp_path, solved, verify)
  assert (found.student, found.teacher, found.gap) == (0.0, 1.0, 1.0)
  assert (found.problems, found.samples, len(calls)) == (4, 3, 24)
  assert calls[:12] != calls[12:]
  assert found.reverse_kl == pytest.approx(dense(runtime, state)[0], rel=1e-4)
  assert found.forward_kl == pytest.approx(dense(runtime, state)[1], rel=1e-4)


def dense(runtime, state):
  """Both divergences by the whole distributions in float64, on the same text sampled anew."""
  evaluation = runtime.experiment.evaluations[0]
  problems = evaluation.chosen
  batch = batches.prompt_batch(problems, 3, runtime.stage.template, runtime.tokenizer, first_row=0)
  key = jax.random.split(jax.random.fold_in(runtime.key, gap.STREAM))[0]
  model = writers.student_model(runtime, state.weights)
  rollout = sampler.generate(model, batch.prompts, key, sampling=runtime.sampling)
  answered = batches.verified(batch.problems, rollout, runtime.tokenizer, evaluation.task)
  judge, mask = runtime.judges['teacher'], np.asarray(rollout.mask)
  scenes = runtime.scenes(answered, RunPosition())
  logs = []
  for each, prompts in ((runtime.student, None), (judge, scenes)):
    request = ScoreRequest(hidden=True)
    if prompts is None:
      plain = [
        runtime.stage.template.render(runtime.tokenizer, p.messages) for p in answered.problems
      ]
      scores = each.score_prompts(state.weights, plain, rollout, None, request)
    else:
      scores = each.score(state.weights, scenes, rollout, None, request)
    hidden, head = (np.asarray(x, np.float64) for x in (scores.hidden, each.head(state.weights)))
    logits = hidden @ head
    logs.append((logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))[mask])
  p, q = logs
  kl = lambda one, other: (np.exp(one) * (one - other)).sum(axis=-1).mean()
  return kl(p, q), kl(q, p)


def test_rows_without_a_context_are_asked_the_plain_question(tmp_path):
  some = lambda scene: question('1+') if scene.seed[1] % 2 else None
  found, *_ = measured(tmp_path, some, lambda problem, text: 1.0)
  assert found.shown == 0.5 and found.reverse_kl > 0
  none, *_ = measured(tmp_path, lambda scene: None, lambda problem, text: 1.0)
  assert none.shown == 0 and np.isnan(none.reverse_kl)


# --- the command ------------------------------------------------------------------------------------


def finished(folder, measured_gap, accuracies, **record):
  """A run's folder as `opd gap` and `opd train` leave it."""
  (folder / 'student').mkdir(parents=True)
  rows = [{'step': step, 'eval/sums/avg@4': value} for step, value in enumerate(accuracies)]
  (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  (folder / 'gap.json').write_text(
    json.dumps({'gap': measured_gap, 'evaluation': 'sums', **record})
  )
  return str(folder)


def test_the_command_fits_finished_runs(tmp_path, capsys):
  folders = [
    finished(tmp_path / str(n), x, [0.25, 0.5, 0.25 + 2 * x])
    for n, x in enumerate((0.0, 0.125, 0.25))
  ]
  assert cli.main(['gap', '--fit', *folders, '--json']) == 0
  found = json.loads(capsys.readouterr().out)
  assert found['law']['slope'] == 2 and [run['gain'] for run in found['runs']] == [0, 0.25, 0.5]
  assert cli.main(['gap', '--fit', *folders]) == 0
  assert 'a = 2.000 ± 0.000' in capsys.readouterr().out


@pytest.mark.parametrize(
  'change, words',
  [
    (lambda run: (run / 'gap.json').unlink(), 'has no gap.json. Measure it with the gin files'),
    (lambda run: (run / 'gap.json').write_text('{}'), 'is not what `opd gap` writes'),
    (lambda run: (run / 'student').rmdir(), 'it has no student'),
    (lambda run: (run / 'metrics.jsonl').write_text(''), 'has 0 values of eval/sums/avg@'),
  ],
)
def test_a_run_that_says_nothing_is_named(tmp_path, capsys, change, words):
  folders = [finished(tmp_path / str(n), 0.1 * n, [0.0, 0.2]) for n in range(2)]
  change(tmp_path / '1')
  assert cli.main(['gap', '--fit', *folders]) == 2
  error = capsys.readouterr().err
  assert words in error and str(tmp_path / '1') in error and len(error.splitlines()) == 1


def test_what_cannot_be_measured_is_refused(capsys, monkeypatch, pytestconfig):
  monkeypatch.chdir(pytestconfig.rootpath)
  files = [
    'experiments/models/small.gin',
    'experiments/data/sums.gin',
    'experiments/methods/sft.gin',
  ]
  flags = [flag for file in files for flag in ('--gin_file', file)]
  for more, words in (
    ([], "no stage has a teacher; there are ['train']"),
    (['--stage', 'distil'], 'no stage called distil has a teacher'),
    (['--fit', 'runs/a'], 'leave out the gin files'),
  ):
    assert cli.main(['gap', *flags, *more]) == 2
    assert words in capsys.readouterr().err
