"""A judge behind a server: the numbers of a live one at the right positions, and words for all that can go wrong."""

import dataclasses
import http.server
import json
import threading

import httpx2
import numpy as np
import pytest
import served_worlds as worlds
import tiny_runs as runs

from opd_jax import judges
from opd_jax.data.problems import question
from opd_jax.data.prompts import unpadded
from opd_jax.data.tiny_worlds import sums
from opd_jax.inference.sampler import Model
from opd_jax.judges import introductions, wire
from opd_jax.judges.wire import BadReply, Question
from opd_jax.losses.rest_rules import Tail
from opd_jax.losses.supports import StudentTopK, Support, TeacherTopK
from opd_jax.methods import gkd, opd
from opd_jax.serving.passes import Passes, Row
from opd_jax.sharding import mesh_layout
from opd_jax.storage import load
from opd_jax.training import preflight, verbs
from opd_jax.training.state import RunPosition

START = RunPosition()
TOP = gkd.gkd(student_fraction=1.0, support=Support(entries=TeacherTopK(4), rest=Tail()))
CHOSEN = gkd.gkd(student_fraction=1.0, support=Support(entries=StudentTopK(3), rest=Tail()))


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  return runs.teacher_folder(tmp_path_factory.mktemp('served'))


@pytest.fixture(scope='module')
def server(weights):
  with worlds.served(weights, '--rows', '4') as server:
    yield server


def scored(folder, judge, *, count=4, **changes):
  """A batch, what the teacher says of it, and the stage."""
  runtime, state = runs.at_work(folder, {'teacher': judge}, **changes)
  problems = runtime.stream().take(count)
  if isinstance(judge, judges.spec.Routed):
    routes = ('even', 'odd')
    problems = [each._replace(route=routes[n % 2]) for n, each in enumerate(problems)]
  responses = verbs.sample(runtime, state.weights, problems, START)
  evidence = verbs.score(runtime, state.weights, responses, START)
  return responses, evidence.scores['teacher'], runtime, state


def same(one, other, mask):
  """Both say the same of the tokens that count."""
  pick = lambda x: np.asarray(x)[mask]
  np.testing.assert_allclose(pick(one.logp), pick(other.logp), atol=1e-5)
  np.testing.assert_array_equal(one.known, other.known)
  for a, b in ((one.top_k, other.top_k), (one.at_ids, other.at_ids)):
    assert (a is None) == (b is None)
    if a is not None and b is not None:
      np.testing.assert_array_equal(pick(a.ids), pick(b.ids))
      np.testing.assert_allclose(pick(a.logp), pick(b.logp), atol=1e-5)


def shown(scene):
  """Nothing of one row; the answer behind the question of the others."""
  told = question(scene.problem.messages[0]['content'] + scene.problem.answer)
  return None if scene.seed[1] == 3 else told


@pytest.mark.parametrize('method', [opd.opd(), TOP, CHOSEN], ids=['opd', 'top k', 'chosen ids'])
@pytest.mark.parametrize('context', [None, shown], ids=['plain', 'context'])
def test_served_says_what_live_says(tmp_path, weights, server, method, context):
  live = scored(tmp_path, judges.frozen(weights, context=context), method=method)
  far = scored(tmp_path, judges.served(server.url, context=context), method=method)
  mask = np.asarray(live[0].rollout.mask) & np.asarray(live[1].known)
  same(live[1], far[1], mask)
  assert mask.any() and np.asarray(far[1].known).all() == (context is None)


@pytest.mark.parametrize('method', [opd.opd(), TOP], ids=['opd', 'top k'])
def test_a_server_without_our_extensions_says_the_same(tmp_path, weights, server, method):
  live = scored(tmp_path, judges.frozen(weights), method=method)
  with worlds.proxied(server.url, **worlds.like_vllm()) as proxy:
    far = scored(tmp_path, judges.served(proxy.url), method=method)
  same(live[1], far[1], np.asarray(live[0].rollout.mask))
  asked = [body for path, body in proxy.asked if path == '/v1/completions']
  assert {body['temperature'] for body in asked} == {1.0, 0.5} and all(
    body['top_p'] == 1 and body['max_tokens'] == 1 for body in asked
  )


def test_routed_rows_go_to_their_server_and_each_is_asked_once(tmp_path, weights, server):
  other = runs.teacher_folder(tmp_path / 'other', seed=6)
  live = judges.routed(even=judges.frozen(weights), odd=judges.frozen(other))
  want = scored(tmp_path, live, count=6, method=TOP)
  with worlds.proxied(server.url) as proxy:
    table = judges.routed(even=judges.served(proxy.url), odd=judges.frozen(other))
    got = scored(tmp_path, table, count=6, method=TOP)
  same(want[1], got[1], np.asarray(want[0].rollout.mask))
  rows = [json.dumps(body['prompt']) for path, body in proxy.asked if body['max_tokens'] == 0]
  rows = rows[2 * introductions.ROWS + 1 :]  # behind the probes
  assert len(rows) == len({*rows}) <= 6


def test_a_cache_stands_in_front_and_knows_another_model(tmp_path, weights, server):
  folder = str(tmp_path / 'cache')
  with worlds.proxied(server.url) as proxy:
    first = scored(tmp_path, judges.served(proxy.url, cache=folder), method=TOP)
    asked = len(proxy.asked)
    again = scored(tmp_path, judges.served(proxy.url, cache=folder), method=TOP)
    assert len(proxy.asked) - asked == 2 * introductions.ROWS + 1  # probes only
  np.testing.assert_array_equal(first[1].logp, again[1].logp)
  other = runs.teacher_folder(tmp_path / 'other', seed=6)
  with worlds.served(other, '--name', server.served.name) as impostor:
    told = scored(tmp_path, judges.served(impostor.url, cache=folder), method=TOP)
  mask = np.asarray(first[0].rollout.mask)
  assert np.abs(np.asarray(told[1].logp) - np.asarray(first[1].logp))[mask].max() > 0.01


def test_what_is_said_of_a_row_does_not_depend_on_who_else_asks(weights):
  """So a run has the same bits however requests fall together."""
  loaded = load.model(weights, mesh_layout())
  passes = Passes(Model(loaded.config, mesh_layout(), loaded.params), rows=4, top_k=3, slots=2)
  rng = np.random.default_rng(1)
  rows = [Row(rng.integers(0, 22, 9 + 8 * n).tolist(), 1 + n, None) for n in range(11)]
  alone = [passes.ask(row).result() for row in rows]
  for order in (rows, rows[::-1], rows[3:] + rows[:3]):
    together = {id(row): passes.ask(row) for row in order}
    for row, want in zip(rows, alone, strict=True):
      got = together[id(row)].result()
      np.testing.assert_array_equal(got.logp, want.logp)
      np.testing.assert_array_equal(got.top_k.logp, want.top_k.logp)
  passes.close()


# --- replies ----------------------------------------------------------------------------------------

QUESTION = Question([5, 6, 7], 1, 2)
GOOD = [{6: -1.0, 4: -0.9, 3: -3.0}, {9: -0.5, 8: -1.5, 7: -4.0}]


def reply(entries, protocol='completions'):
  if protocol == 'sglang':
    chosen = [[entry[token], token, None] for token, entry in zip([6, 7], entries, strict=True)]
    best = [[[logp, token, None] for token, logp in entry.items()] for entry in entries]
    return {
      'meta_info': {
        'input_token_logprobs': [[None, 5, None], *chosen],
        'input_top_logprobs': [None, *best],
        'input_token_ids_logprobs': [None, *best],
      }
    }
  told = [None, *({str(token): {'logprob': x} for token, x in entry.items()} for entry in entries)]
  return {'choices': [{'prompt_logprobs': told}]}


@pytest.mark.parametrize('protocol', ['completions', 'sglang'])
def test_entries_are_sorted_whatever_their_order(protocol):
  for turn in (list, reversed):
    entries = [dict(turn([*entry.items()])) for entry in GOOD]
    found = wire.read(reply(entries, protocol), QUESTION, protocol=protocol)
    np.testing.assert_allclose(found.logp, [-1.0, -4.0])
    np.testing.assert_array_equal(found.top_ids, [[4, 6], [9, 8]])
    np.testing.assert_allclose(found.top_logp, [[-0.9, -1.0], [-0.5, -1.5]])


def test_sglang_is_asked_from_one_token_before_the_response_and_tells_of_chosen_ones():
  ids = np.array([[3, 6], [7, 9]], np.int32)
  asked = QUESTION._replace(ids=ids)
  body = wire.body(asked, model='m', protocol='sglang', ours=False)
  assert body['logprob_start_len'] == 0 and body['token_ids_logprob'] == [3, 6, 7, 9]
  found = wire.read(reply(GOOD, 'sglang'), asked, protocol='sglang')
  np.testing.assert_allclose(found.at_logp, [[-3.0, -1.0], [-4.0, -0.5]])


def without(entries, place, token):
  return [
    {each: x for each, x in entry.items() if number != place or each != token}
    for number, entry in enumerate(entries)
  ]


def changed(place, token, value):
  return [
    {each: value if (number, each) == (place, token) else x for each, x in entry.items()}
    for number, entry in enumerate(GOOD)
  ]


@pytest.mark.parametrize(
  'entries, words',
  [
    (GOOD[:1], 'tells of 2 tokens, 3 were asked'),
    (GOOD[::-1], 'token 0 of the response is 6'),  # off by one
    (without(GOOD, 1, 7), 'token 1 of the response is 7'),
    (without(without(GOOD, 1, 9), 1, 8), 'sends 1 tokens at token 1'),
    (changed(0, 4, float('nan')), 'at token 0 of the response is not finite'),
    (changed(1, 7, float('-inf')), 'at token 1 of the response is not finite'),
    (changed(1, 7, -9999.0), 'at token 1 of the response is not finite'),
    (changed(1, 7, None), 'at token 1 of the response is not finite'),
    (changed(1, 8, 0.5), 'above zero'),
    (changed(1, 9, -0.01), 'sum to more than one'),
  ],
)
def test_a_reply_that_is_no_answer_is_told_apart(entries, words):
  with pytest.raises(BadReply, match=words):
    wire.read(reply(entries), QUESTION, protocol='completions')
  with pytest.raises(BadReply, match='no log-probabilities where they belong'):
    wire.read({'choices': []}, QUESTION, protocol='completions')


def test_packed_numbers_are_the_same_and_those_of_other_tokens_are_told_apart(server, weights):
  ids = np.array([[3, 6], [7, 9]], np.int32)
  asked = QUESTION._replace(ids=ids)
  found = []
  with httpx2.Client(base_url=server.url, trust_env=False) as http:
    for ours in (True, False):
      body = wire.body(asked, model=server.served.name, protocol='completions', ours=True)
      if not ours:
        body.pop('prompt_logprobs_packed')
      told = http.post('/v1/completions', json=body).json()
      found.append(wire.read(told, asked, protocol='completions'))
      if ours:
        with pytest.raises(BadReply, match='of other tokens'):
          wire.read(told, asked._replace(tokens=[5, 7, 6]), protocol='completions')
  for one, other in zip(*found, strict=True):
    np.testing.assert_array_equal(one, other)


# --- refused ----------------------------------------------------------------------------------------


def refusal(folder, url, *, method=TOP, options=None, **changes):
  with pytest.raises(ValueError) as caught:
    scored(folder, judges.served(url, **(options or {})), method=method, **changes)
  text = str(caught.value)
  assert text.count('\n') <= 1
  return text


@pytest.mark.parametrize(
  'method, words',
  [
    (gkd.gkd(student_fraction=1.0), ['hidden states', '`support`', '@supports.TeacherTopK()']),
    (dataclasses.replace(TOP, needs=TOP.needs), []),
  ],
)
def test_the_whole_vocabulary_is_refused_before_anybody_is_asked(tmp_path, method, words):
  if words:
    text = refusal(tmp_path, 'http://127.0.0.1:9', method=method)
    assert all(word in text for word in words), text
  else:
    assert 'no server answers' in refusal(tmp_path, 'http://127.0.0.1:9', method=method)


def test_whole_diagnosis_and_combined_judges_are_refused(tmp_path, weights):
  assert 'whole_diagnosis' in refusal(tmp_path, 'http://127.0.0.1:9', whole_diagnosis=True)
  with pytest.raises(ValueError, match='sends log-probabilities of some tokens only'):
    judges.combined(parts=((1.0, judges.served('http://h:1')), (0.5, judges.frozen(weights))))


@pytest.mark.parametrize(
  'options, words',
  [
    ({'url': 'host:8000'}, "url is the address of a server, 'http://host:8000'"),
    ({'url': 'http://h:1', 'timeout': 0.0}, 'timeout must be a number above 0'),
  ],
)
def test_settings_are_checked(options, words):
  with pytest.raises(ValueError, match=words):
    judges.served(**options)
  assert judges.served('http://h:1/v1/').url == 'http://h:1'


def test_a_server_that_is_away_and_a_model_that_is_not_there_are_one_line(tmp_path, server):
  text = refusal(tmp_path, 'http://127.0.0.1:9')
  assert 'judge teacher: no server answers at http://127.0.0.1:9' in text and '\n' not in text
  text = refusal(tmp_path, server.url, options={'model': 'other'})
  assert f"has the models ['{server.served.name}'], not 'other'" in text
  with worlds.proxied(server.url, models=lambda told: {'data': told['data'] * 2}) as proxy:
    scored(tmp_path, judges.served(proxy.url))  # one name twice is one model
  two = lambda told: {'data': [*told['data'], {'id': 'second'}]}
  with worlds.proxied(server.url, models=two) as proxy:
    assert 'name one: judges.served.model' in refusal(tmp_path, proxy.url)
  assert 'the environment has no OPD_TEST_KEY' in refusal(
    tmp_path, server.url, options={'key_of': 'OPD_TEST_KEY'}
  )


def test_the_cap_on_k_is_read_from_the_refusal(tmp_path, weights, server):
  with worlds.proxied(server.url, **worlds.like_vllm(cap=3)) as proxy:
    text = refusal(tmp_path, proxy.url)
    assert "teacher's 4 likeliest tokens" in text and 'sends 3 at most' in text
    assert 'TeacherTopK.k = 3' in text and '--max-logprobs 4' in text
    _, scores, _, _ = scored(tmp_path, judges.served(proxy.url), method=opd.opd())
    assert scores.top_k.ids.shape[-1] == 3  # the diagnosis asks for no more
    assert 'tells them of its own only' in refusal(
      tmp_path, proxy.url, method=gkd.gkd(support=Support(entries=StudentTopK(2), rest=Tail()))
    )
  with worlds.served(weights, '--max_top_k', '2') as small:
    assert 'sends 2 at most' in refusal(tmp_path, small.url)


def test_another_tokenizer_is_refused_by_its_strings(tmp_path, server):
  strings = [*sums.tokenizer().strings()]
  strings[0], strings[1] = strings[1], strings[0]
  other = runs.teacher_folder(tmp_path / 'swapped', strings=tuple(strings))
  with worlds.served(other) as swapped:
    assert '2 ids stand for other strings' in refusal(tmp_path, swapped.url)
  assert '2 ids stand for other strings' in refusal(
    tmp_path, server.url, options={'tokenizer': other}
  )
  # a server that only cuts texts, as vLLM does
  cut = lambda text: [len(text), 0]
  change = lambda path, body, told: (
    (200, {'tokens': cut(body['prompt'])}) if path == '/tokenize' else (200, told)
  )
  vllm = {**worlds.like_vllm(), 'change': change}
  with worlds.proxied(server.url, **vllm) as proxy:
    assert "its tokenizer is not the student's: token 0" in refusal(tmp_path, proxy.url)


def hurt(path, body, told, *, when, how):
  """Changes every log-probability of replies that `when` names."""
  if path != '/v1/completions' or 'choices' not in told or not when(body):
    return (400 if 'error' in told else 200), told
  for entry in worlds.entries_of(told):
    for each in entry.values():
      each['logprob'] = how(each['logprob'])
  return 200, told


def test_numbers_that_depend_on_the_order_are_refused(tmp_path, server):
  """As where a prefix cache of another request is read."""
  seen = set()

  def again(body):
    key = json.dumps(body['prompt'])
    was_there = key in seen
    seen.add(key)
    return was_there

  change = lambda *request: hurt(*request, when=again, how=lambda x: x - 0.05)
  with worlds.proxied(server.url, change, models=worlds.like_vllm()['models']) as proxy:
    text = refusal(tmp_path, proxy.url)
    assert 'differ by 0.05 nats on average and 0.05 at most' in text
    assert '--no-enable-prefix-caching' in text
    seen.clear()
    options = {'tolerance': 0.1}
    _, _, runtime, _ = scored(tmp_path, judges.served(proxy.url, **options))
    assert '0.05 nats apart at most' in runtime.judges['teacher'].known.shown


def test_the_dry_step_scores_its_rows_twice(tmp_path, server):
  calm = {'on': True}
  change = lambda *request: hurt(
    *request, when=lambda body: not calm['on'] and calm.update(on=True) is None, how=lambda x: x - 9
  )
  with worlds.proxied(server.url, change, models=worlds.like_vllm()['models']) as proxy:
    runtime, state = runs.at_work(tmp_path, {'teacher': judges.served(proxy.url)}, method=TOP)
    said = []
    state, _ = preflight.check(runtime, runtime.stream(), state, START, said.append)
    assert any('rows scored twice, in two orders: 0 nats apart' in line for line in said)
    calm['on'] = False
    with pytest.raises(ValueError, match='two scorings of the same rows, in two orders'):
      preflight.check(runtime, runtime.stream(), state, START, said.append)


@pytest.mark.parametrize('power, good', [(1.0, True), (0.7, False)])
def test_a_temperature_is_divided_by_or_ignored_and_nothing_else(tmp_path, server, power, good):
  """At temperature 0.5 distances double; where they do not, the server has rules of its own."""

  def change(path, body, told):
    if path == '/v1/completions' and 'choices' in told:
      for entry in worlds.entries_of(told):
        heat = body['temperature'] ** power
        total = np.log(sum(np.exp(each['logprob'] / heat) for each in entry.values()))
        for each in entry.values():
          each['logprob'] = min(each['logprob'] / heat - (total if heat != 1 else 0), 0.0)
    return (400 if 'error' in told else 200), told

  with worlds.proxied(server.url, change, models=worlds.like_vllm()['models']) as proxy:
    if good:
      _, _, runtime, _ = scored(tmp_path, judges.served(proxy.url))
      assert runtime.judges['teacher'].known.temperature == (
        'it divides by the temperature, and 1 is asked for'
      )
    else:
      assert 'not twice: it has a temperature or other rules' in refusal(tmp_path, proxy.url)


def test_a_row_that_never_gets_an_answer_is_named(tmp_path, server):
  """The others are not asked for ever, and the message says what the server said."""
  begun = {'training': []}

  def change(path, body, told):
    if begun['training'] and body.get('prompt') == begun['training']:
      return 500, {'error': {'message': 'CUDA out of memory'}}
    return 200, told

  with worlds.proxied(server.url, change, models=worlds.like_vllm()['models']) as proxy:
    runtime, state = runs.at_work(
      tmp_path, {'teacher': judges.served(proxy.url, patience=0.5)}, method=TOP
    )
    responses = verbs.sample(runtime, state.weights, runtime.stream().take(4), START)
    rollout, row = responses.rollout, 2
    prompt = unpadded(rollout.prompt)[row]
    begun['training'] = [*prompt, *rollout.response[row][: rollout.lengths[row]].tolist()]
    with pytest.raises(ValueError, match=r'has not scored row [0-2] for 0.5 s: HTTP 500: CUDA out'):
      verbs.score(runtime, state.weights, responses, START)


def test_a_slow_server_is_given_up_after_its_timeout(tmp_path, server):
  runtime, state = runs.at_work(
    tmp_path, {'teacher': judges.served(server.url, timeout=0.5, patience=1.0)}, method=TOP
  )
  responses = verbs.sample(runtime, state.weights, runtime.stream().take(4), START)
  with worlds.proxied(server.url, worlds.slow(2.0)) as proxy:
    judge = runtime.judges['teacher']
    client = introductions.client_of('teacher', dataclasses.replace(judge.spec, url=proxy.url))
    far = dataclasses.replace(
      runtime, judges={'teacher': dataclasses.replace(judge, client=client)}
    )
    with pytest.raises(ValueError, match='ReadTimeout'):
      verbs.score(far, state.weights, responses, START)


def test_long_rows_are_refused_by_name_or_left_unjudged(tmp_path, server):
  short = lambda told: {'data': [{**told['data'][0], 'max_model_len': 12}]}
  with worlds.proxied(server.url, models=short) as proxy:
    text = refusal(tmp_path, proxy.url)
    assert 'takes 12 together' in text and "too_long = 'unknown'" in text
    _, scores, _, _ = scored(tmp_path, judges.served(proxy.url, too_long='unknown'), method=TOP)
    assert not np.asarray(scores.known).all()


def test_a_server_of_http_asked_by_https_is_said_to_be_that(tmp_path):
  server = http.server.HTTPServer(('127.0.0.1', 0), http.server.SimpleHTTPRequestHandler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  try:
    text = refusal(tmp_path, f'https://127.0.0.1:{server.server_port}')
  finally:
    server.shutdown()
    server.server_close()
  assert f'It may speak http: bind http://127.0.0.1:{server.server_port}.' in text
