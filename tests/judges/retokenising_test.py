"""A judge with a tokenizer of its own, at work: what it says, what it cannot judge, what it refuses."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny_runs as runs

from opd_jax import judges
from opd_jax.data.pieces import PieceTokenizer
from opd_jax.data.problems import Problem, question
from opd_jax.data.tiny_worlds import sums
from opd_jax.data.tokenizers import CharacterTokenizer
from opd_jax.judges.retokenising import ForeignJudge
from opd_jax.methods import alm, bpm, dpca, gkd, gold, opd, seqkd, uld
from opd_jax.sharding import mesh_layout
from opd_jax.training import preflight, verbs
from opd_jax.training.asking import check_stage
from opd_jax.training.inspection import inspect
from opd_jax.training.state import RunPosition
from opd_jax.types import ScoreRequest

START = RunPosition()
METHODS = [opd.opd, dpca.dpca, alm.alm, bpm.bpm, gold.gold, uld.uld]
SMALL = {bpm.bpm: {'k': 8}, gold.gold: {'k': 8}, uld.uld: {'k': 8}}


class Pairs(PieceTokenizer):
  """The text of *sums* with some pairs of characters as tokens."""

  def __init__(self, pieces=('1+', '2=', ';3', '+4=')):
    super().__init__('0123456789+=;:', pieces=pieces)


def folder_of(path, tokenizer):
  rows = len(tokenizer.strings())
  return runs.teacher_folder(path, strings=tokenizer.strings(), vocab_size=rows)


def at_work(path, judge, **changes):
  runtime, state = runs.at_work(path, {'teacher': judge}, **changes)
  responses = verbs.sample(runtime, state.weights, runtime.stream().take(4), START)
  return runtime, state, responses


def scores_of(path, judge, request, **changes):
  runtime, state, responses = at_work(path, judge, **changes)
  teacher, scenes = runtime.judges['teacher'], runtime.scenes(responses, START)
  ids = np.arange(request.at_student_top_k, dtype=np.int32)
  ids = np.broadcast_to(ids, (*responses.rollout.response.shape, len(ids)))
  return responses, teacher.score(state.weights, scenes, responses.rollout, ids, request)


def test_with_the_students_tokenizer_it_is_a_frozen_judge_bit_by_bit(tmp_path):
  """The random student writes characters in any order, and each is a token of both."""
  every = len(
    sums.tokenizer().strings()
  )  # rows of the table that stand for no token are part of the rest
  folder, request = runs.teacher_folder(tmp_path), ScoreRequest(at_student_top_k=every)
  foreign = judges.foreign(folder, tokenizer=sums.tokenizer())
  responses, got = scores_of(tmp_path, foreign, request)
  _, want = scores_of(tmp_path, judges.frozen(folder), request)
  mask = responses.rollout.mask
  assert np.asarray(got.known)[mask].all() and mask.sum() > 8
  np.testing.assert_array_equal(np.asarray(got.logp)[mask], np.asarray(want.logp)[mask])
  one, other = (np.asarray(each.at_ids.logp)[mask] for each in (got, want))
  np.testing.assert_allclose(one, other, rtol=0, atol=2e-6)


@pytest.mark.parametrize('make', METHODS, ids=lambda make: make.__name__)
def test_every_method_of_its_kind_makes_a_step(tmp_path, make):
  method, teacher = make(**SMALL.get(make, {})), Pairs()
  judge = judges.foreign(folder_of(tmp_path, teacher), tokenizer=teacher)
  runtime, state, responses = at_work(tmp_path, judge, method=method)
  check_stage(runtime.stage, runtime.config)
  evidence = verbs.score(runtime, state.weights, responses, START)
  chunk = np.asarray(evidence.scores['teacher'].chunk)
  mask = responses.rollout.mask
  assert (chunk[mask] >= 0).all() and np.asarray(evidence.mask)[mask].all()
  before = jax.device_get(state.params)
  batch, told = verbs.weigh(runtime, state.weights, evidence)
  assert float(told['unaligned']) == 0 and float(told['chunk_tokens']) > 1
  state, row = verbs.updates(runtime, state, responses, evidence, batch, START)
  assert np.isfinite([row['loss'], row['grad_norm']]).all() and row['grad_norm'] > 0
  assert runs.closeness(before, jax.device_get(state.params)) > 0


@pytest.mark.parametrize('open_ends', [False, True])
def test_over_a_response_its_numbers_are_the_teachers_of_its_own_tokens(tmp_path, open_ends):
  """With open ends those of a response that has ended: another may still go on."""
  teacher = Pairs()
  folder = folder_of(tmp_path, teacher)
  judge = judges.foreign(folder, tokenizer=teacher, open_ends=open_ends)
  runtime, state, responses = at_work(tmp_path, judge)
  scenes, foreign = runtime.scenes(responses, START), runtime.judges['teacher']
  got = np.asarray(
    foreign.score(state.weights, scenes, responses.rollout, None, ScoreRequest()).logp
  )
  aligned = foreign.rows_of(responses.rollout)
  width = max(len(row.tokens) for row in aligned)
  tokens = np.stack([np.pad(row.tokens, (0, width - len(row.tokens))) for row in aligned])
  own = foreign.inner.score_responses(
    state.weights, foreign.prompts(scenes), tokens, None, ScoreRequest()
  )
  assert [teacher.decode(row.tokens.tolist()) for row in aligned] == responses.texts
  for row, found in enumerate(aligned):
    want = np.asarray(own.logp)[row, : len(found.tokens)].sum()
    told, over = got[row][responses.rollout.mask[row]].sum(), teacher.turn_end in found.tokens
    if over or not open_ends:
      np.testing.assert_allclose(told, want, rtol=1e-5)
    else:
      assert told > want - 1e-4


def test_its_prompt_is_rendered_in_its_own_tokens(tmp_path):
  teacher = Pairs()
  judge = judges.foreign(folder_of(tmp_path, teacher), tokenizer=teacher)
  runtime, _, responses = at_work(tmp_path, judge)
  problem = Problem(question('1+2='))
  want = runtime.stage.template.render(teacher, problem.messages)
  scenes = [each._replace(problem=problem) for each in runtime.scenes(responses, START)]
  assert runtime.judges['teacher'].prompts(scenes)[0] == want


def test_a_cached_one_says_the_same_from_disk(tmp_path, monkeypatch):
  teacher = Pairs()
  folder, request = folder_of(tmp_path, teacher), ScoreRequest(top_k=4)
  plain = judges.foreign(folder, tokenizer=teacher)
  stored = judges.foreign(folder, tokenizer=teacher, cache=str(tmp_path / 'cache'))
  responses, want = scores_of(tmp_path, plain, request)
  scores_of(tmp_path, stored, request)
  monkeypatch.setattr(ForeignJudge, 'score_prompts', None)
  _, got = scores_of(tmp_path, stored, request)
  mask = responses.rollout.mask
  same = lambda one, other: np.testing.assert_array_equal(np.asarray(one)[mask], other[mask])
  jax.tree.map(same, got, jax.device_get(want))


def test_beside_a_judge_with_the_students_tokenizer_every_row_has_its_own(tmp_path):
  teacher = Pairs()
  judge = judges.routed(
    even=judges.foreign(folder_of(tmp_path / 'far', teacher), tokenizer=teacher),
    odd=judges.frozen(runs.teacher_folder(tmp_path / 'near')),
  )
  runtime, state = runs.at_work(tmp_path, {'teacher': judge})
  problems = [
    each._replace(route=('even', 'odd')[number % 2])
    for number, each in enumerate(runtime.stream().take(4))
  ]
  responses = verbs.sample(runtime, state.weights, problems, START)
  evidence = verbs.score(runtime, state.weights, responses, START)
  chunk, mask = np.asarray(evidence.scores['teacher'].chunk), responses.rollout.mask
  alone = np.arange(mask.shape[1])
  for row, problem in enumerate(responses.problems):
    if problem.route == 'odd':
      np.testing.assert_array_equal(chunk[row][mask[row]], alone[mask[row]])
  assert (chunk[mask] >= 0).all()


def test_on_several_devices_it_says_what_it_says_on_one(tmp_path):
  if jax.device_count() < 4:
    pytest.skip('one device')
  teacher, request = Pairs(), ScoreRequest(top_k=4, at_student_top_k=3, entropy=True)
  judge = judges.foreign(folder_of(tmp_path, teacher), tokenizer=teacher)
  responses, want = scores_of(tmp_path, judge, request)
  layout = mesh_layout(fsdp=2, tensor=2)
  _, got = scores_of(tmp_path, judge, request, layout=layout)
  mask = responses.rollout.mask
  close = lambda one, other: np.testing.assert_allclose(
    np.asarray(one, np.float64)[mask], np.asarray(other, np.float64)[mask], atol=2e-5
  )
  jax.tree.map(close, got, want)


def test_a_row_that_it_cannot_read_is_named_and_a_batch_of_them_refused(tmp_path):
  """This teacher has no digits above four."""
  teacher = CharacterTokenizer('01234+=;:')
  judge = judges.foreign(folder_of(tmp_path, teacher), tokenizer=teacher)
  runtime, state = runs.at_work(tmp_path, {'teacher': judge})
  problems = [Problem(question('1+2='), answer='3', name=f'row {n}') for n in range(4)]
  responses = verbs.sample(runtime, state.weights, problems, START)
  evidence = verbs.score(runtime, state.weights, responses, START)
  said = []
  preflight._aligned(evidence, responses, said.append)
  (warning,) = said
  assert 'teacher does not judge' in warning and 'tokens of row' in warning
  stray = responses.rollout.mask & (np.asarray(evidence.scores['teacher'].chunk) < 0)
  told = verbs.weigh(runtime, state.weights, evidence)[1]
  share = stray.sum() / responses.rollout.mask.sum()
  np.testing.assert_allclose(float(told['unaligned']), share, rtol=1e-6)
  assert 0 < share < 1 and not np.asarray(evidence.mask)[stray].any()
  none = evidence.scores['teacher']._replace(chunk=np.full(stray.shape, -1))
  evidence = evidence._replace(scores={**evidence.scores, 'teacher': none})
  with pytest.raises(ValueError, match='can judge no token of the first batch'):
    preflight._aligned(evidence, responses, said.append)


def test_a_row_without_room_in_its_tokens_is_refused_by_name(tmp_path):
  teacher = Pairs()
  folder = runs.teacher_folder(
    tmp_path, strings=teacher.strings(), vocab_size=len(teacher.strings()), max_positions=8
  )
  with pytest.raises(ValueError, match='its position table has 8'):
    scores_of(tmp_path, judges.foreign(folder, tokenizer=teacher), ScoreRequest())


def refused(path, judge, match, **changes):
  with pytest.raises(ValueError, match=match):
    runs.at_work(path, {'teacher': judge}, **changes)


def test_what_is_not_there_or_cannot_be_is_refused(tmp_path):
  teacher = Pairs()
  folder = folder_of(tmp_path, teacher)
  refused(tmp_path, judges.foreign(folder), 'no tokenizer lies beside .* judges.foreign.tokenizer')
  other = Pairs(pieces=('1+', '2=', ';3', '+4:'))
  refused(tmp_path, judges.foreign(folder, tokenizer=other), 'is not that of')
  wide = Pairs(pieces=('1+', '2=', ';3', '+4=', '55'))
  refused(tmp_path, judges.foreign(folder, tokenizer=wide), 'is not that of')
  refused(tmp_path, judges.frozen(folder), 'a tokenizer of its own: judges.foreign')
  foreign = judges.foreign(folder, tokenizer=teacher)
  refused(tmp_path, foreign, 'hidden states, which predict tokens of its own', method=gkd.gkd())
  refused(tmp_path, foreign, 'the teacher is to write', method=seqkd.seqkd())
  refused(tmp_path, foreign, 'to be compared entry by entry', whole_diagnosis=True)
  with pytest.raises(ValueError, match='logits are added token by token'):
    judges.combined(parts=((1.0, foreign),))
  with pytest.raises(ValueError, match='longest_chunk is at least 1'):
    judges.foreign(folder, longest_chunk=0)


def test_a_look_before_step_0_finds_a_tokenizer_that_is_missing(tmp_path):
  teacher = Pairs()
  judge = judges.foreign(folder_of(tmp_path, teacher))
  experiment = runs.experiment(tmp_path / 'run')
  stage = dataclasses.replace(experiment.stages[1], method=opd.opd(), judges={'teacher': judge})
  experiment = dataclasses.replace(experiment, stages=(stage,))
  mistakes = [each for each in inspect(experiment) if each.mistake]
  assert any('no tokenizer lies beside' in str(each) for each in mistakes)
