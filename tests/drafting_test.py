"""A draft on the command line, in evaluations and in gin: what is printed, measured and refused."""

import re

import pytest

from opd_jax.configuration import build

SHORT = ('--prompt', 'ab', '--samples', '3', '--max_new_tokens', '6')
RECIPE = ['experiments/recipes/draft_opd.gin']
TEACHER = 'TEACHER = "tiny"'


def test_with_a_draft_the_text_is_that_of_the_model_and_the_gain_is_printed(opd):
  """Greedy text does not depend on the draft; one that is the model itself is always believed."""
  plain = opd('sample', '--model', 'tiny', *SHORT, '--temperature', '0')
  flags = ('--draft', 'tiny', '--proposals', '2', '--temperature', '0', '--compare')
  status, out, err = opd('sample', '--model', 'tiny', *SHORT, *flags)
  assert status == 0 and out == plain[1]
  assert (
    '100.0% of the judged proposals were kept, 3.00 tokens per pass of the model (at most 3)' in err
  )
  assert re.search(r'speed-up \d+\.\d\d x: [\d,]+ tokens/s with the draft, [\d,]+ without', err)


@pytest.mark.parametrize(
  'flags, words',
  [
    (['--draft', 'tiny', '--proposals', '0'], 'at least 1 token, got 0'),
    (['--proposals', '3'], '--proposals is about a draft, and there is none'),
    (['--proposals', '0'], '--proposals is about a draft, and there is none'),
    (['--compare'], '--compare is about a draft, and there is none'),
    (['--draft', 'huge'], 'neither a folder nor a preset'),
  ],
)
def test_a_draft_that_cannot_be_is_refused(opd, flags, words):
  status, _, err = opd('sample', '--model', 'tiny', *SHORT, *flags)
  assert status == 2 and words in err and 'Traceback' not in err


@pytest.mark.parametrize(
  'binding, words',
  [
    ('draft/evaluator.Evaluation.draft_of_teacher = -1', 'draft_of_teacher must be a whole number'),
    ('JUDGES = {}', 'the teacher is to write, and there is no judge of that name'),
    ('draft_opd.draft_opd.proposals = 0', 'proposals must be at least 1'),
  ],
)
def test_settings_of_the_recipe_without_meaning_are_refused(binding, words):
  with pytest.raises(ValueError, match=words):
    build(RECIPE, [TEACHER, binding])


def test_an_evaluation_of_a_draft_wants_a_teacher(opd, tmp_path):
  files = [f'experiments/{name}.gin' for name in ('models/tiny', 'data/sums', 'methods/sft')]
  asks = 'evaluator.Evaluation.draft_of_teacher = 2'
  with pytest.raises(
    ValueError, match='measures the student beside a teacher, and no stage has one'
  ):
    build(files, [asks])
  suite = tmp_path / 'suite.gin'
  suite.write_text(
    'from __gin__ import dynamic_registration\n'
    'from opd_jax.data.tiny_worlds import sums\n'
    'from opd_jax.evaluation import evaluator\n'
    'evaluator.Suite.evaluations = [@evaluator.Evaluation()]\n'
    'evaluator.Evaluation:\n  task = @sums.sums()\n  problems = 2\n  draft_of_teacher = 2\n'
  )
  status, _, err = opd('evaluate', 'tiny', '--gin_file', suite, '--workdir', tmp_path / 'w')
  assert status == 2 and 'has draft_of_teacher, and no teacher is here' in err
