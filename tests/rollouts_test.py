"""Who writes: shares are kept, prefixes and early stops end where they should, and nothing moves a row's text."""

import jax
import numpy as np
import pytest

from opd_jax import ramps, responses, rollouts
from opd_jax.data.prompts import left_padded
from opd_jax.data.templates import TaughtTokens
from opd_jax.inference.sampler import Model, Sampling
from opd_jax.models import presets, transformer
from opd_jax.ramps import Ramp
from opd_jax.rollouts import mix, writing
from opd_jax.sharding import mesh_layout
from opd_jax.training import gradient
from opd_jax.types import TEACHER

ROWS = [[1, 2, 3], [4], [5, 6], [7, 8, 9, 1], [2], [3, 3]]
SAMPLING = Sampling(budget=10, slots=4)


@pytest.fixture(scope='module')
def models():
  config = presets.tiny(width=32, num_layers=1, vocab_size=24)
  make = lambda seed: Model(
    config, mesh_layout(), transformer.init(config, mesh_layout(), jax.random.key(seed))
  )
  return make(0), make(1)


def lessons(rows):
  return [TaughtTokens(row, [True] * len(row)) for row in rows]


def write(writers, models, demonstrations=None, step=0):
  writers = ramps.settled(writers, step)
  prompts = left_padded(ROWS, width=4, pad=0)
  return writing.write(
    writers, prompts, demonstrations or [None] * len(ROWS), jax.random.key(3), student=lambda: models[0],
    teacher=lambda: writing.Writer(models[1], prompts), sampling=SAMPLING, columns=24,
  )  # fmt: skip


@pytest.mark.parametrize(
  'shares', [(1.0, 0.0, 0.0), (0.5, 0.0, 0.5), (0.25, 0.25, 0.5), (0.0, 1.0, 0.0), (0.3, 0.7, 0.0)]
)
def test_every_row_has_one_writer_and_shares_are_kept(shares):
  writers = rollouts.RolloutMix(teacher=shares[1], data=shares[2])
  dealt = writers.deal(40)
  np.testing.assert_array_equal(dealt.sum(axis=0), 1)
  np.testing.assert_allclose(dealt.mean(axis=1), shares, atol=0.026)


def test_rows_of_several_writers_are_joined_in_order(models):
  demonstrations = [[1, 2], [3], [4, 5, 6], [7], [8, 8], [9]]
  got = write(rollouts.mixture(student=0.5), models, lessons(demonstrations))
  alone = write(rollouts.student(), models)
  student = got.by_student.any(axis=1)
  assert student.sum() == 3
  np.testing.assert_array_equal(got.response[student], alone.response[student])
  for row in np.flatnonzero(~student):
    assert (
      got.response[row][got.mask[row]].tolist() == demonstrations[row]
      and np.isnan(got.logp[row]).all()
    )


def test_the_teacher_writes_where_it_is_asked_to(models):
  got = write(rollouts.teacher(), models)
  other = write(rollouts.student(), models[::-1])
  np.testing.assert_array_equal(got.response, other.response)
  assert not got.by_student.any() and got.mask.all()


def test_the_teacher_writes_from_proposals_of_the_student_and_the_text_is_its_own(models):
  got = write(rollouts.teacher(proposals=2), models)
  assert (got.writer == TEACHER).all() and got.mask.all()
  from opd_jax.inference import scorer

  config, layout, params = models[1]
  for prompt, response, logp in zip(ROWS, got.response.tolist(), got.logp, strict=True):
    (told,) = scorer.score_rows(params, [prompt], [response], config=config, layout=layout)
    np.testing.assert_allclose(told.logp, logp, atol=1e-4)


def test_proposals_without_a_teacher_that_writes_are_refused():
  with pytest.raises(ValueError, match='2 proposals are for rows that the teacher writes'):
    rollouts.RolloutMix(proposals=2)
  with pytest.raises(ValueError, match='not negative, got -1'):
    rollouts.teacher(proposals=-1)


def test_a_prefix_of_the_teacher_is_read_and_does_not_count(models):
  ramp = Ramp(begin=6, end=0, steps=4)
  mixes = [ramps.settled(rollouts.student(prefix=ramp), step) for step in (0, 1, 2, 4, 9)]
  assert [mix.whole(each.prefix) for each in mixes] == [6, 4, 3, 0, 0]
  got = write(rollouts.student(prefix=ramp), models, step=1)
  assert got.mask[:, 4:].all() and not got.mask[:, :4].any() and got.response.shape == (6, 10)
  longer = [row + front.tolist() for row, front in zip(ROWS, got.response[:, :4], strict=True)]
  from opd_jax.inference import scorer

  for row, (prompt, response) in enumerate(zip(longer, got.response[:, 4:].tolist(), strict=True)):
    config, layout, params = models[0]
    (told,) = scorer.score_rows(params, [prompt], [response], config=config, layout=layout)
    np.testing.assert_allclose(told.logp, got.logp[row, 4:], atol=1e-4)
  np.testing.assert_array_equal(write(rollouts.student(prefix=ramp), models, step=4).mask, True)


def test_a_prefix_that_counts_is_the_same_text_and_its_writer_is_known(models):
  read, taught = (
    write(rollouts.RolloutMix(prefix=4, prefix_counts=counts), models) for counts in (False, True)
  )
  np.testing.assert_array_equal(taught.response, read.response)
  np.testing.assert_array_equal(taught.mask, read.mask | (read.writer == TEACHER))
  np.testing.assert_array_equal(taught.mask & taught.by_student, read.mask)
  assert (taught.writer[:, :4] == TEACHER).all() and taught.mask[:, :4].all()


def test_an_early_stop_shortens_what_is_written(models):
  got = write(rollouts.student(stop_after=Ramp(begin=3, end=8, steps=5)), models, step=0)
  assert got.mask.sum(axis=1).max() == 3
  whole = write(rollouts.student(), models)
  np.testing.assert_array_equal(got.response[:, :3], whole.response[:, :3])


def test_the_student_has_what_the_others_leave():
  assert rollouts.student().student == 1.0 and rollouts.dataset().student == 0.0
  moving = rollouts.RolloutMix(teacher=0.25, data=Ramp(begin=0.75, end=0.25, steps=2))
  assert [ramps.settled(moving, step).student for step in range(3)] == [0.0, 0.25, 0.5]


def test_trimming_and_cutting_keep_every_token():
  demonstrations = [[1, 2], [3], [4, 5, 6], [7], [8, 8], []]
  prompts = left_padded(ROWS, width=60, pad=0)
  whole = writing.given(prompts, lessons(demonstrations), width=40)
  got = responses.trimmed(whole)
  assert got.response.shape == (6, 8) and got.prompt.tokens.shape == (6, 8)
  assert [
    row[mask].tolist() for row, mask in zip(got.response, got.mask, strict=True)
  ] == demonstrations
  parts = gradient.microbatches_of(got, 3, devices=2)
  assert sorted(np.concatenate(parts).tolist()) == list(range(6)) and parts[0][0] == 2
  with pytest.raises(ValueError, match='6 rows cannot be dealt'):
    gradient.microbatches_of(got, 2, devices=4)


def test_refusals(models):
  with pytest.raises(ValueError, match='never sum to more than 1'):
    rollouts.RolloutMix(teacher=0.5, data=Ramp(begin=0.0, end=0.6, steps=4))
  with pytest.raises(ValueError, match='some problems have none'):
    write(rollouts.dataset(), models)
  with pytest.raises(ValueError, match='never cut silently'):
    writing.given(left_padded([[1]], width=1, pad=0), lessons([[1] * 9]), width=8)
