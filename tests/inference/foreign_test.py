"""What a foreign teacher says, against sums over its whole vocabulary written out in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from opd_jax.data.alignment import Pair
from opd_jax.data.pieces import PieceTokenizer
from opd_jax.data.templates import Template
from opd_jax.data.tiny_worlds import sums
from opd_jax.inference import foreign, scorer
from opd_jax.judges.local import LocalJudge
from opd_jax.judges.retokenising import ForeignJudge
from opd_jax.judges.spec import Judge
from opd_jax.models import presets
from opd_jax.sharding import mesh_layout
from opd_jax.types import ScoreRequest

RNG = np.random.RandomState(4)
TEXTS = ('7+5=12;12+9=21:21', '30=+1;;=19', '1', '')


@pytest.fixture(autouse=True)
def float64():
  with jax.enable_x64(True):
    yield


class Case:
  """Rows in both kinds of tokens, and a teacher whose logits at each of its positions are drawn."""

  def __init__(self, student, teacher, texts=TEXTS, *, open_ends=False):
    self.student, self.teacher = student, teacher
    rows = len(teacher.strings()) + 1  # one of padding
    config = presets.tiny(vocab_size=rows)
    inner = LocalJudge(
      name='teacher', spec=Judge(), config=config, layout=mesh_layout(), home=mesh_layout(),
      columns=rows, tokenizer=teacher, template=Template(),
    )  # fmt: skip
    self.columns = len(student.strings())
    self.judge = ForeignJudge(
      inner=inner,
      pair=Pair(student, teacher, teacher.turn_end),
      columns=self.columns,
      open_ends=open_ends,
    )
    self.rows = [[*student.encode(text), student.turn_end] for text in texts]
    self.width = max(map(len, self.rows)) + 2
    self.aligned = [self.judge.pair.align(row) for row in self.rows]
    self.response = np.zeros((len(texts), self.width), np.int32)
    for number, row in enumerate(self.rows):
      self.response[number, : len(row)] = row
    self.tokens, self.places = self.judge._placed(self.aligned, self.response)
    self.logits = RNG.randn(*self.tokens.shape, rows) * 1.5
    self.log = self.logits - np.log(np.exp(self.logits).sum(-1, keepdims=True))
    pick = np.take_along_axis(self.log, self.tokens[..., None], axis=-1)
    self.logp = pick[..., 0]

  def read(self, request=ScoreRequest(), ids=None):
    return foreign.read(
      self.logits, np.eye(self.logits.shape[-1]), self.logp, self.places,
      self.judge._tables, self.response, ids,
      request=request, columns=self.columns,
    )  # fmt: skip

  def begun(self, row, text):
    """F: the log-probability of some first bytes of a row."""
    found, total, at = self.aligned[row], 0.0, 0
    written = self.judge.pair.written
    for number, token in enumerate(found.tokens):
      piece = written[token] or b'\xfe'  # a control token: one byte that is no text
      if at + len(piece) <= text:
        total, at = total + self.logp[row, number], at + len(piece)
        continue
      begin = piece[: text - at]
      inside = [i for i, w in enumerate(written) if w and w.startswith(begin)] if begin else []
      return total + (np.log(np.exp(self.log[row, number])[inside].sum()) if begin else 0.0)
    return total

  def distribution(self, row, at, conditional):
    """Byte-prefix marginalisation at a position of the student, entry by entry; the rest comes last."""
    found, written = self.aligned[row], self.judge.pair.written
    place, offset = found.place[at], found.offset[at]
    begin = (written[found.tokens[place]] or b'')[:offset]
    names = {text: number for number, text in enumerate(self.student.token_bytes()) if text}
    probs, mass = np.zeros(self.columns + 1), 0.0

    def cell(token):
      name = self.teacher.strings()[token]
      if written[token] is None:
        return self.student.strings().index(name)
      rest = written[token][offset:]
      known = [rest[:n] for n in range(len(rest), 0, -1) if rest[:n] in names]
      return names[known[0]] if known else self.columns

    for token in range(self.log.shape[-1]):
      text = written[token] if token < len(written) else None
      if offset and not (text and text.startswith(begin)):
        continue
      q = np.exp(self.log[row, place, token])
      mass += q
      probs[self.columns if token >= len(written) else cell(token)] += q
    probs /= mass
    if found.spans[at]:
      own = np.exp(conditional)
      probs[self.rows[row][at]] += own
      probs[cell(found.tokens[place])] -= own
    return probs


CASES = {
  'signs from numbers': lambda: Case(sums.signs(), sums.numbers()),
  'characters from numbers': lambda: Case(sums.tokenizer(), sums.numbers()),
  'numbers from characters': lambda: Case(sums.numbers(), sums.tokenizer()),
  'one tokenizer': lambda: Case(sums.numbers(), sums.numbers()),
}
ALL = pytest.mark.parametrize('name', CASES)


@ALL
def test_a_token_has_what_the_text_gains_by_it(name):
  case = CASES[name]()
  got, sizes = np.asarray(case.read().logp), case.student.token_bytes()
  for row, tokens in enumerate(case.rows):
    ends = np.cumsum([len(sizes[token] or b'\xfe') for token in tokens])
    f = [case.begun(row, end) for end in (0, *ends)]
    np.testing.assert_allclose(got[row, : len(tokens)], np.diff(f), rtol=0, atol=1e-10)


@ALL
def test_chunks_sum_to_the_teachers_log_probabilities_and_so_does_the_response(name):
  case = CASES[name]()
  scores = case.read()
  got, chunk = np.asarray(scores.logp), np.asarray(scores.chunk)
  for row, found in enumerate(case.aligned):
    assert (chunk[row, len(case.rows[row]) :] == -1).all()
    for number in range(found.chunk.max() + 1):
      theirs = case.logp[row, : len(found.tokens)][found.others == number].sum()
      np.testing.assert_allclose(got[row][chunk[row] == number].sum(), theirs, atol=1e-10)
    whole = case.logp[row, : len(found.tokens)].sum()
    np.testing.assert_allclose(got[row, : len(case.rows[row])].sum(), whole, atol=1e-10)


@ALL
def test_the_distribution_over_the_students_tokens_is_that_of_the_sums(name):
  """Entries, entropy, entries at given ids; with its rest it sums to one."""
  case = CASES[name]()
  ids = RNG.randint(0, case.columns, (*case.response.shape, 3)).astype(np.int32)
  request = ScoreRequest(top_k=case.columns, at_student_top_k=3, entropy=True)
  scores = case.read(request, ids)
  logp = np.asarray(scores.logp)
  for row, tokens in enumerate(case.rows):
    for at in range(len(tokens)):
      want = case.distribution(row, at, logp[row, at])
      assert abs(want.sum() - 1) < 1e-12 and want.min() > -1e-12
      got, top = np.zeros(case.columns + 1), scores.top_k
      got[np.asarray(top.ids[row, at])] += np.exp(np.asarray(top.logp[row, at]))
      np.testing.assert_allclose(got[:-1], want[:-1], rtol=0, atol=1e-10)
      np.testing.assert_allclose(1 - got[:-1].sum(), want[-1], rtol=0, atol=1e-10)
      asked = np.exp(np.asarray(scores.at_ids.logp[row, at]))
      np.testing.assert_allclose(asked, want[ids[row, at]], rtol=0, atol=1e-10)
      with np.errstate(divide='ignore', invalid='ignore'):
        entropy = -np.nansum(np.where(want > 1e-300, want * np.log(want), 0.0))
      np.testing.assert_allclose(scores.entropy[row, at], entropy, rtol=0, atol=1e-9)


def test_with_one_tokenizer_it_says_what_a_plain_judge_says():
  """The log-probability of the written token to the last bit; what is summed over a vocabulary to 1e-10."""
  case = CASES['one tokenizer']()
  ids = RNG.randint(0, case.columns, (*case.response.shape, 3)).astype(np.int32)
  case.logits[
    ..., case.columns :
  ] = -1e9  # a native judge would show what the padded row of its table has
  case.log = np.asarray(jax.nn.log_softmax(case.logits))
  case.logp = np.take_along_axis(case.log, case.tokens[..., None], axis=-1)[..., 0]
  size = min(case.response.shape[1], case.tokens.shape[1])
  for across in ('projected', 'own', 'joint'):
    request = ScoreRequest(top_k=5, at_student_top_k=3, entropy=True, across=across)
    got = case.read(request, ids)
    want = scorer.read(
      jnp.asarray(case.logits)[:, :size], jnp.eye(case.logits.shape[-1]), case.tokens[:, :size],
      ids[:, :size], layout=mesh_layout(), request=request,
    )  # fmt: skip
    for row, tokens in enumerate(case.rows):
      here = (row, slice(0, len(tokens)))
      np.testing.assert_array_equal(np.asarray(got.logp)[here], case.logp[here])
      np.testing.assert_array_equal(np.asarray(got.chunk)[here], np.arange(len(tokens)))
      np.testing.assert_array_equal(got.top_k.ids[here], want.top_k.ids[here])
      pairs = [(got.entropy, want.entropy), (got.logp, want.logp)]
      pairs += [(got.top_k.logp, want.top_k.logp), (got.at_ids.logp, want.at_ids.logp)]
      for one, other in pairs:
        np.testing.assert_allclose(one[here], other[here], rtol=0, atol=1e-10)


def opened(name):
  students = {
    'signs from numbers': sums.signs,
    'characters from numbers': sums.tokenizer,
    'numbers from characters': sums.numbers,
    'one tokenizer': sums.numbers,
  }
  teacher = sums.tokenizer() if name == 'numbers from characters' else sums.numbers()
  return Case(students[name](), teacher, open_ends=True)


def may_become(case, row, at):
  """S where a token of the student ends: by hand, from the strings."""
  found, written = case.aligned[row], case.judge.pair.written
  held, mine = found.tokens[found.within[at]], case.student.token_bytes()
  if written[held] is None:
    return {held}
  begin, said = written[held][: found.depth[at]], mine[case.rows[row][at]]
  became = {held} if found.whole[at] else set()
  longer = [text for text in mine if text and text.startswith(said) and text != said]
  for token, text in enumerate(written):
    if text is None or not text.startswith(begin):
      continue
    if found.since[at] < 0:  # the student's token began before it
      if not found.whole[at] or not longer:
        became.add(token)
      continue
    rest = text[found.since[at] :]
    known = [each for each in mine if each and rest.startswith(each)]
    if max(known, key=len, default=None) == said:
      became.add(token)
  return became


@ALL
def test_with_open_ends_a_token_has_what_the_text_gains_by_it_and_no_more(name):
  """F where a token of the student ends: the teacher's ended tokens, and all that its last one may become."""
  case = opened(name)
  got = np.asarray(case.read().logp)
  for row, tokens in enumerate(case.rows):
    found, f = case.aligned[row], [0.0]
    for at in range(len(tokens)):
      before = case.logp[row, : found.within[at]].sum()
      became = [*may_become(case, row, at)]
      f.append(before + np.log(np.exp(case.log[row, found.within[at]])[became].sum()))
    np.testing.assert_allclose(got[row, : len(tokens)], np.diff(f), rtol=0, atol=1e-10)
    whole = case.logp[row, : len(found.tokens)].sum()  # its end cannot go on
    np.testing.assert_allclose(got[row, : len(tokens)].sum(), whole, rtol=0, atol=1e-10)


def test_with_open_ends_and_one_tokenizer_nothing_changes():
  case = opened('one tokenizer')
  got = case.read()
  for row, tokens in enumerate(case.rows):
    here = (row, slice(0, len(tokens)))
    np.testing.assert_array_equal(np.asarray(got.logp)[here], case.logp[here])


def test_with_open_ends_the_next_character_is_that_of_both_ways_to_cut_the_text():
  """A student of single characters: tokens that go on, and what follows where the last one has ended."""
  case = opened('characters from numbers')
  top = case.read(ScoreRequest(top_k=case.columns)).top_k
  written, names = case.judge.pair.written, case.student.strings()
  for row, tokens in enumerate(case.rows):
    found = case.aligned[row]
    for at in range(len(tokens)):
      want = np.zeros(case.columns + 1)
      ended = 1.0

      def give(text, token, mass, want=want):
        name = chr(text[0]) if text else case.teacher.strings()[token] if text is None else None
        want[names.index(name) if name is not None else case.columns] += mass

      if at:
        q = np.exp(case.log[row, found.within[at - 1]])
        became = may_become(case, row, at - 1)
        held, depth = found.tokens[found.within[at - 1]], found.depth[at - 1]
        total = q[[*became]].sum()
        ended = q[held] / total if found.whole[at - 1] else 0.0
        for token in became - ({held} if found.whole[at - 1] else set()):
          give(written[token][depth:], token, q[token] / total)
      if ended:
        q = np.exp(case.log[row, found.place[at]])
        for token in range(len(written)):
          give(written[token], token, ended * q[token])
        want[case.columns] += ended * q[len(written) :].sum()
      got = np.zeros(case.columns + 1)
      got[np.asarray(top.ids[row, at])] += np.exp(np.asarray(top.logp[row, at]))
      assert abs(want.sum() - 1) < 1e-12
      np.testing.assert_allclose(got[:-1], want[:-1], rtol=0, atol=1e-10)


@ALL
def test_with_open_ends_entries_and_rest_sum_to_one_and_the_written_token_has_its_part(name):
  case = opened(name)
  scores = case.read(ScoreRequest(top_k=case.columns, at_student_top_k=1), case.response[..., None])
  for row, tokens in enumerate(case.rows):
    here = (row, slice(0, len(tokens)))
    mass = np.exp(np.asarray(scores.top_k.logp)[here]).sum(axis=-1)
    assert (mass < 1 + 1e-12).all() and (mass > 0).all()
    written = np.asarray(scores.at_ids.logp)[here][:, 0]
    assert (written > np.asarray(scores.logp)[here] - 1e-10).all()


def test_a_number_that_was_to_go_on_is_charged_to_the_sign_that_ended_it():
  """The teacher writes 12 and nothing else; the student writes 1+. Its 1 is right, its + is not."""
  student, teacher = sums.tokenizer(), sums.numbers()
  told = {}
  for open_ends in (True, False):
    case = Case(student, teacher, texts=('1+',), open_ends=open_ends)
    probs = np.full(case.logits.shape, 1e-6)
    probs[0, 0, teacher.strings().index('12')] = 1.0
    probs[0, 1, teacher.strings().index('+')] = 1.0
    case.logits = np.log(probs / probs.sum(axis=-1, keepdims=True))
    case.logp = np.take_along_axis(case.logits, case.tokens[..., None], axis=-1)[..., 0]
    told[open_ends] = np.asarray(case.read().logp)[0, :2]
  assert told[True][0] > -1e-3 and told[True][1] < -13
  assert told[False][0] < -13 and told[False][1] > -1e-3


def test_own_tokens_are_the_teachers_best_where_a_chunk_begins_with_the_students_names():
  case = CASES['signs from numbers']()
  top = case.read(ScoreRequest(top_k=case.logits.shape[-1], across='own')).top_k
  for row, found in enumerate(case.aligned):
    for at in range(len(case.rows[row])):
      log = np.sort(case.log[row, found.place[at]])[::-1]
      np.testing.assert_allclose(top.logp[row, at], log, rtol=0, atol=1e-10)
      named = {int(each) for each in np.asarray(top.ids[row, at])} - {-1}
      shared = {*case.student.strings()} & {*case.teacher.strings()}
      assert {case.student.strings()[each] for each in named} == shared


def test_joint_tokens_hold_the_chunk_before_its_last_token():
  """At the realised last token it is the log-probability of the whole chunk."""
  case = CASES['signs from numbers']()
  top = case.read(ScoreRequest(top_k=case.logits.shape[-1], across='joint')).top_k
  for row, found in enumerate(case.aligned):
    for at, chunk in enumerate(found.chunk):
      members = found.others == chunk
      theirs = case.logp[row, : len(found.tokens)][members]
      last = case.log[row, : len(found.tokens)][members][-1]
      want = np.sort(last)[::-1] + theirs[:-1].sum()
      np.testing.assert_allclose(top.logp[row, at], want, rtol=0, atol=1e-10)


def test_the_examples_of_the_paper():
  """arXiv:2607.22334: {at .5, ate .2, a .2, bit .1} over {a, at, ate, bit}, and a teacher with longer words."""
  student = PieceTokenizer('aehntybi', pieces=['at', 'ate', 'bit', 'the', 'an'])
  teacher = PieceTokenizer('aehntybi', pieces=['at', 'ate', 'bit', 'the', 'then', 'they', 'an'])

  def spread(given):
    case = Case(student, teacher, texts=('bit',))
    probs = np.zeros(case.logits.shape[-1])
    for text, q in given.items():
      probs[teacher.strings().index(text)] = q
    case.logits = np.broadcast_to(np.log(np.maximum(probs, 1e-300)), case.logits.shape)
    top = case.read(ScoreRequest(top_k=8)).top_k
    ids, logp = np.asarray(top.ids[0, 0]), np.exp(np.asarray(top.logp[0, 0]))
    return {
      student.strings()[i]: round(float(q), 10) for i, q in zip(ids, logp, strict=True) if q > 1e-99
    }

  plain = {'a': 0.2, 'at': 0.5, 'ate': 0.2, 'bit': 0.1}
  assert spread(plain) == plain
  words = {'the': 0.38, 'then': 0.22, 'they': 0.12, 'a': 0.1, 'an': 0.08, 'b': 0.1}
  assert spread(words) == {'the': 0.72, 'a': 0.1, 'an': 0.08, 'b': 0.1}


def test_a_token_that_spans_three_of_the_teachers_has_their_product():
  """arXiv:2607.22334: .7 x .9 x .95 = .5985, taken from the entry that held the first."""
  student, teacher = PieceTokenizer('<t>x', pieces=['<t>']), PieceTokenizer('<t>x', pieces=['<x'])
  case = Case(student, teacher, texts=('<t>',))
  probs = np.full(case.logits.shape, 1e-12)
  for at, (text, q) in enumerate((('<', 0.7), ('t', 0.9), ('>', 0.95))):
    probs[0, at, teacher.strings().index(text)] = q
    probs[0, at, teacher.strings().index('x')] = 1 - q
  case.logits = np.log(probs / probs.sum(-1, keepdims=True))
  case.log = case.logits
  case.logp = np.take_along_axis(case.log, case.tokens[..., None], axis=-1)[..., 0]
  scores = case.read(ScoreRequest(top_k=3))
  ids = [student.strings()[i] for i in np.asarray(scores.top_k.ids[0, 0])]
  np.testing.assert_allclose(np.exp(scores.top_k.logp[0, 0]), [0.5985, 0.3, 0.1015], atol=1e-9)
  assert ids == ['<t>', 'x', '<']
