r"""Floor 5. Certificates: what an estimator's gradient is *in expectation*, by enumeration, in float64.

The bigram world: a student, a teacher and a reference that know only the token before, V tokens, T positions, so that
every response can be written down with its probability. A method runs through its own `weigh` and the vocabulary
pass on each of them; the expectation over all is compared with the exact gradient of what it claims to descend:

    J = 1/T Σ_t Σ_c P(c before t) D( p(·|c), q(·|c) ),      P by whoever writes, and without a gradient of its own

Bad estimators are certified too, as bad, with their numbers: a certificate that could not fail would prove nothing.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from opd_jax.inference import scorer
from opd_jax.losses import advantages, divergences, supports, terms, vocabulary
from opd_jax.losses.columns import Target
from opd_jax.losses.divergences import Divergence
from opd_jax.losses.terms import OnSupport, Term
from opd_jax.losses.vocabulary import Share
from opd_jax.method import Evidence, Method, target_of
from opd_jax.methods import discover
from opd_jax.rollouts import Writers
from opd_jax.sharding import mesh_layout
from opd_jax.types import Prompts, Rollout, Scores, TopK

V, T, K = 5, 3, 3  # tokens, positions, and what a method's top k is cut to
EXACT = 1e-9  # relative: what counts as equal in float64
PLAIN = 1e-3  # relative: what counts as different
STEPS, RATE = 3000, 0.05  # of the search for the fixed point
FIXED = 1e-3  # nats from the closed form


class Line(NamedTuple):
  """One certificate. Numbers are relative to the exact gradient's size; None where they mean nothing."""

  kind: str  # 'method', 'estimator', 'exact', 'known bad', 'term'
  name: str
  claim: str
  bias: float | None
  cosine: float | None
  deviation: float | None  # of one response's gradient
  fixed_point: float | None  # KL in nats between where it ends and the closed form, at the worst context
  holds: bool


@dataclasses.dataclass(frozen=True)
class World:
  """Tables of logits [1 + V, V]; the first row answers for the beginning."""

  student: Any
  teacher: Any
  reference: Any

  @property
  def responses(self):
    return jnp.asarray(np.stack(np.meshgrid(*[range(V)] * T, indexing='ij'), axis=-1).reshape(-1, T), jnp.int32)


def world(seed: int = 0) -> World:
  """Tables of the given seed; the beginning has the logits of the field's test vector."""
  rng = np.random.RandomState(seed)
  tables = 1.2 * rng.randn(3, 1 + V, V)
  tables[0, 0], tables[1, 0] = [2, 1, 0, -1, 0.5], [0.2, 2, 1, -2, 0]
  return World(*map(jnp.asarray, tables))


def _contexts(responses):
  """The row of the table that answers for each position."""
  return jnp.concatenate([jnp.zeros_like(responses[:, :1]), responses[:, :-1] + 1], axis=1)


def _log_chance(table, responses):
  """log-probability of every response under a table."""
  log = jax.nn.log_softmax(table)[_contexts(responses)]
  return jnp.take_along_axis(log, responses[..., None], axis=-1)[..., 0].sum(axis=1)


def _chances(writers: Writers, student, world: World):
  """Probability of every response under whoever writes; a data set is the teacher's text."""
  responses = world.responses
  mine, others = (jnp.exp(_log_chance(table, responses)) for table in (student, world.teacher))
  return writers.student * mine + (1 - writers.student) * others


def exact(divergence: Divergence, writers: Writers, table, world: World, target=None):
  """Gradient of the objective J with respect to the table; `target` replaces the teacher's log-probabilities."""
  contexts = _contexts(world.responses)
  chances = _chances(writers, table, world)[:, None]
  visits = jnp.zeros(table.shape[0]).at[contexts].add(jnp.broadcast_to(chances, contexts.shape)) / T
  log_q = jax.nn.log_softmax(world.teacher if target is None else target)
  return jax.grad(lambda table: (visits * divergence(jax.nn.log_softmax(table), log_q)).sum())(table)


def _scores(logits, response, needs: scorer.Needs, ids=None) -> Scores:
  log = jax.nn.log_softmax(logits)
  pick = lambda ids: jnp.take_along_axis(log, ids, axis=-1)
  best = jax.lax.top_k(log, needs.top_k) if needs.top_k else None
  return Scores(
    logp=pick(response[..., None])[..., 0],
    entropy=-(jnp.exp(log) * log).sum(axis=-1) if needs.entropy else None,
    top_k=None if best is None else TopK(ids=best[1], logp=best[0]),
    at_ids=None if ids is None else pick(ids),
    hidden=logits if needs.hidden else None,
    layers=None,
  )


def _evidence(method: Method, table, world: World, response) -> Evidence:
  """What a run would know about one response [1, T]."""
  contexts, needs = _contexts(response), method.needs
  student = _scores(table[contexts], response, needs.student)
  ids = student.top_k.ids if needs.at_student_top_k and student.top_k is not None else None
  one, mask = jnp.zeros((1,), jnp.int32), jnp.ones(response.shape, bool)
  rollout = Rollout(
    prompt=Prompts(tokens=one[:, None], length=one + 1, row=one, group=one), response=response, mask=mask,
    by_student=mask, behaviour_logp=student.logp, logp=student.logp, entropy=None, top_k=None, ended_by=one + 1,
    version=one, reward=jnp.zeros((1,)),
  )  # fmt: skip
  return Evidence(
    rollout=rollout,
    student=student,
    teacher=_scores(world.teacher[contexts], response, needs.teacher, ids),
    others={name: _scores(world.reference[contexts], response, scorer.Needs()) for name in needs.others},
    step=jnp.int32(0),
    key=jax.random.key(0),
  )


def _pass(table, response, target: Target, shares: Sequence[Share]):
  """Loss of one response through the vocabulary pass; the head is the identity, so states are logits."""
  states = table[_contexts(response)]
  return vocabulary.weighted_sum(states, jnp.eye(V), response, target, shares, layout=mesh_layout())[0]


def by_method(method: Method) -> Callable[[Any, World, Any], Any]:
  """(table, world, response [1, T]) -> the gradient of the method's loss."""

  def gradient(table, world: World, response):
    evidence = _evidence(method, jax.lax.stop_gradient(table), world, response)
    target, shares = target_of(evidence, jnp.eye(V)), method.weigh(evidence)
    return jax.grad(lambda table: _pass(table, response, target, shares))(table)

  return gradient


def by_term(term: Term) -> Callable[[Any, World, Any], Any]:
  """The same for a term with coefficient 1/T, the teacher known whole."""

  def gradient(table, world: World, response):
    contexts = _contexts(response)
    logp = _scores(world.teacher[contexts], response, scorer.Needs()).logp
    share = Share(term, jnp.full(response.shape, 1 / T), {'teacher_logp': logp})
    target = Target(hidden=world.teacher[contexts], head=jnp.eye(V))
    return jax.grad(lambda table: _pass(table, response, target, (share,)))(table)

  return gradient


def by_advantage(advantage: Callable[[Any], Any]) -> Callable[[Any, World, Any], Any]:
  """The same for a policy gradient whose advantage is a function of log u."""

  def gradient(table, world: World, response):
    contexts = _contexts(response)
    log = lambda table: _scores(table[contexts], response, scorer.Needs()).logp
    weight = jax.lax.stop_gradient(advantage(log(world.teacher) - log(table))) / T
    return jax.grad(lambda table: -(weight * log(table)).sum())(table)

  return gradient


def by_loss(loss: Callable[[Any, Any], Any]) -> Callable[[Any, World, Any], Any]:
  """The same for a loss of whole distributions (log p, log q) -> [1, T]."""

  def gradient(table, world: World, response):
    contexts = _contexts(response)
    log_q = jax.nn.log_softmax(world.teacher)[contexts]
    return jax.grad(lambda table: loss(jax.nn.log_softmax(table)[contexts], log_q).mean())(table)

  return gradient


@functools.partial(jax.jit, static_argnames=('gradient', 'writers'))
def _moments(gradient, writers: Writers, tables):
  """Expectation of a gradient over every response, and its variance."""
  here = World(*tables)
  chances = _chances(writers, here.student, here)
  each = jax.vmap(lambda response: gradient(here.student, here, response[None]))(here.responses)
  mean = jnp.tensordot(chances, each, axes=1)
  return mean, (chances * jnp.square(each - mean).sum(axis=(1, 2))).sum()


def moments(gradient, writers: Writers, world: World) -> tuple[Any, Any]:
  return _moments(gradient, writers, (world.student, world.teacher, world.reference))


def compared(mean, variance, truth) -> tuple[float, float, float]:
  """Relative bias, cosine, relative deviation."""
  size, length = float(jnp.linalg.norm(truth)), float(jnp.linalg.norm(mean))
  cosine = float((mean * truth).sum()) / (size * length) if length > 0 else 0.0
  return float(jnp.linalg.norm(mean - truth)) / size, cosine, float(jnp.sqrt(variance)) / size


def fixed_point(method: Method, world: World) -> float:
  """Follows the expected gradient to its end: KL from the closed form there, at the worst context."""
  gradient, optimiser = by_method(method), optax.adam(optax.cosine_decay_schedule(RATE, STEPS))

  @jax.jit
  def end(tables):
    here = World(*tables)

    def step(_, carry):
      table, state = carry
      chances = _chances(method.rollout, table, here)
      each = jax.vmap(lambda response: gradient(table, here, response[None]))(here.responses)
      updates, state = optimiser.update(jnp.tensordot(chances, each, axes=1), state)
      return optax.apply_updates(table, updates), state

    return jax.lax.fori_loop(0, STEPS, step, (here.student, optimiser.init(here.student)))[0]

  log_p = jax.nn.log_softmax(end((world.student, world.teacher, world.reference)))
  optimum = method.optimum(jax.nn.log_softmax(world.teacher), jax.nn.log_softmax(world.reference))
  return float(divergences.forward_kl()(log_p, jax.nn.log_softmax(optimum)).max())


def made(make: Callable[..., Method]) -> tuple[str, Method]:
  """A method with its defaults, its top k cut to this world."""
  small = {'k': K} if 'k' in inspect.signature(make).parameters else {}
  return f'{make.__name__}{"(k=3)" if small else ""}', make(**small)


def certify_method(make: Callable[..., Method], world: World) -> Line:
  """Bias against what it claims; without a claim, how it lies to the reverse KL; and where it ends."""
  name, method = made(make)
  claimed = method.descends
  log_q, log_r = (jax.nn.log_softmax(table) for table in (world.teacher, world.reference))
  truth = exact(claimed or divergences.reverse_kl(), method.rollout, world.student, world, method.optimum(log_q, log_r))
  bias, cosine, deviation = compared(*moments(by_method(method), method.rollout, world), truth)
  end = fixed_point(method, world)
  holds = end <= FIXED and (bias <= EXACT if claimed else cosine > 0)
  claim = f'unbiased for {claimed.name}' if claimed else 'along reverse_kl'
  return Line('method', name, claim, bias, cosine, deviation, end, holds)


ALL_DIVERGENCES = (
  divergences.forward_kl(), divergences.reverse_kl(), divergences.jensen_shannon(beta=0.5),
  divergences.jensen_shannon(beta=0.1), divergences.jeffreys(), divergences.skew_forward(alpha=0.1),
  divergences.skew_reverse(alpha=0.1), divergences.alpha_family(alpha=0.5), divergences.pearson(),
  divergences.neyman(), divergences.total_variation(), divergences.hellinger(),
)  # fmt: skip
ON_POLICY = Writers(student=1.0)


def _corrected(divergence):
  return by_advantage(functools.partial(advantages.corrected, divergence))


def estimators() -> Iterator[tuple[str, str, Divergence, Any]]:
  """Those that are right: kind, name, what they descend, gradient."""
  yield 'estimator', 'k2 as a loss', divergences.reverse_kl(), by_term(terms.k2())
  yield 'estimator', 'k3 as a loss', divergences.forward_kl(), by_term(terms.k3())
  for divergence in ALL_DIVERGENCES:
    whole = by_term(terms.divergence(divergence, supports.full()))
    yield 'exact', f'{divergence.name}: whole vocabulary', divergence, whole
    yield 'estimator', f'{divergence.name}: corrected advantage', divergence, _corrected(divergence)


def _top(divergence: Divergence, k: int, close) -> Any:
  return by_term(terms.divergence(divergence, supports.student_top_k(k, close=close)))


def _kept_mass(log_p, log_q):
  return jnp.exp(jax.lax.top_k(log_p, 2)[0]).sum(axis=-1)


def _detached_jsd(log_p, log_q):
  fixed = jax.lax.stop_gradient(log_p)
  log_m = jnp.logaddexp(fixed, log_q) - jnp.log(2.0)
  return 0.5 * (jnp.exp(fixed) * (log_p - log_m)).sum(axis=-1) + 0.5 * (jnp.exp(log_q) * (log_q - log_m)).sum(axis=-1)


def _bad(name: str, claim: str, numbers: tuple[float, float, float], holds: bool) -> Line:
  return Line('known bad', name, claim, *numbers, None, holds)


def known_bad(world: World) -> Iterator[Line]:
  """The field's public mistakes, each held to *how* it is wrong."""
  truth = {each: exact(each, ON_POLICY, world.student, world) for each in ALL_DIVERGENCES}
  reverse, forward, half = divergences.reverse_kl(), divergences.forward_kl(), divergences.jensen_shannon(beta=0.5)
  run = lambda gradient, divergence: compared(*moments(gradient, ON_POLICY, world), truth[divergence])
  mean = lambda gradient: moments(gradient, ON_POLICY, world)[0]

  numbers = run(by_term(terms.likelihood()), reverse)  # ∇ k1 = ∇ log p: the teacher has gone
  size = float(jnp.linalg.norm(mean(by_term(terms.likelihood()))))
  yield _bad('k1 as a loss', 'zero on average, noise in each', numbers, size < EXACT < numbers[2])
  raw, stopped = (_top(reverse, 2, close) for close in (supports.raw(), supports.stopped()))
  numbers = run(raw, reverse)
  gap = jnp.linalg.norm(mean(raw) - mean(stopped) - mean(by_loss(_kept_mass)))
  claim = 'biased by the gradient of the kept mass'
  yield _bad('reverse_kl, raw top 2', claim, numbers, numbers[0] > PLAIN and float(gap) < EXACT)
  for divergence in ALL_DIVERGENCES:
    if divergence is not reverse:
      numbers = run(by_advantage(functools.partial(advantages.naive, divergence)), divergence)
      yield _bad(f'{divergence.name}: naive advantage', 'biased', numbers, numbers[0] > PLAIN)
  for name, gradient, divergence in (
    ('reverse_kl, renormalised top 1', _top(reverse, 1, supports.renorm()), reverse),
    ('jensen_shannon, detached weights', by_loss(_detached_jsd), half),
  ):
    numbers = run(gradient, divergence)
    yield _bad(name, 'no gradient at all', numbers, float(jnp.linalg.norm(mean(gradient))) < EXACT)
  clamped = divergences.clamped_per_entry(forward, most=0.05)
  first = jnp.zeros((1 + V, 1)).at[0].set(1.0)  # the printed test vector is the first context
  both = [mean(by_term(terms.divergence(each, supports.full()))) * first for each in (clamped, forward)]
  numbers = compared(both[0], 0.0, both[1])
  yield _bad('forward_kl, clamped per entry', 'turned against the true gradient', numbers, numbers[1] < 0)


def checked_terms() -> tuple[tuple[str, Term], ...]:
  """One of every kind of term, for finite differences."""
  top = lambda close: supports.teacher_top_k(K, close=close())
  closings = supports.tail, supports.renorm, supports.teacher_only, supports.raw
  found: list[Term] = [terms.policy_gradient(), terms.likelihood(), terms.clipped_ratio(dual=3.0)]
  found += [terms.importance_ratio(), terms.k2(), terms.k3(), terms.hidden_distance()]
  found += [terms.divergence(each, supports.full()) for each in ALL_DIVERGENCES]
  found += [terms.divergence(divergences.forward_kl(), top(close)) for close in closings]
  found += [terms.divergence(divergences.jensen_shannon(beta=0.5), supports.union_top_k(2, close=supports.tail()))]
  return tuple((term.name if isinstance(term, OnSupport) else term.name.split('(')[0], term) for term in found)


def check_term(name: str, term: Term, world: World) -> Line:
  """The one-sweep gradient against finite differences, in states and head."""
  rng = np.random.RandomState(5)
  number = lambda *shape: jnp.asarray(rng.randn(*shape))
  response = jnp.asarray([[0, 3, 1], [2, 2, 4]], jnp.int32)
  target = Target(hidden=number(2, T, V), head=number(V, V))
  known = {'advantage': number(2, T), 'teacher_logp': -1 + 0 * number(2, T), 'hidden': number(2, T, 4)}
  known['behaviour_logp'] = known['teacher_logp'] - 0.6
  share = Share(term, jnp.abs(number(2, T)) + 0.1, {name: known[name] for name in term.reads})

  def loss(states, head):
    return vocabulary.weighted_sum(states, head, response, target, (share,), layout=mesh_layout())[0]

  try:
    chex.assert_numerical_grads(
      jax.jit(loss), (number(2, T, 4), number(4, V)), order=1, atol=1e-6, rtol=1e-6, modes=['rev']
    )
    holds = True
  except AssertionError:
    holds = False
  return Line('term', name, 'finite differences agree', None, None, None, None, holds)


def certificates(names: Sequence[str] | None, progress: Callable[[int, int, str], None]) -> list[Line]:
  """The certificates of some methods, or of everything there is.

  Args:
    names: methods; None certifies every method, estimator and term.
    progress: told how many are done, of how many, and which comes next.
  """
  methods = {entry.name: entry.make for entry in discover()}
  if unknown := sorted(set(names or ()) - set(methods)):
    raise ValueError(f'certify: no method is called {", ".join(unknown)}; there are {", ".join(methods)}.')
  with jax.enable_x64(True):
    here = world()
    work: list[tuple[str, Callable[[], Any]]] = [
      (name, functools.partial(certify_method, methods[name], here)) for name in (names or methods)
    ]
    if names is None:
      work += [(line[1], functools.partial(_certify_estimator, *line, here)) for line in estimators()]
      work += [('what is known to be bad', lambda: list(known_bad(here)))]
      work += [(name, functools.partial(check_term, name, term, here)) for name, term in checked_terms()]
    lines: list[Line] = []
    for number, (name, run) in enumerate(work):
      progress(number, len(work), name)
      found = run()
      lines += found if isinstance(found, list) else [found]
  return lines


def _certify_estimator(kind: str, name: str, divergence: Divergence, gradient, world: World) -> Line:
  truth = exact(divergence, ON_POLICY, world.student, world)
  bias, cosine, deviation = compared(*moments(gradient, ON_POLICY, world), truth)
  return Line(kind, name, f'unbiased for {divergence.name}', bias, cosine, deviation, None, bias <= EXACT)
