"""Floor 5. Certificates: what a gradient is *in expectation*, held against what it claims, by enumeration.

A method runs through its own `weigh` and the vocabulary pass on every response of the bigram world. Bad estimators are
certified too, as bad, with their numbers: a certificate that could not fail would prove nothing.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from opd_jax.certify import bigram
from opd_jax.certify.bigram import (
  T,
  V,
  World,
  by_advantage,
  by_loss,
  by_method,
  by_term,
  compared,
  exact,
  moments,
)
from opd_jax.certify.estimators import (
  ALL_DIVERGENCES,
  Estimator,
  K,
  checked_terms,
  detached_jsd,
  estimators,
  kept_mass,
  student_top,
)
from opd_jax.losses import advantages, divergences, supports, terms, vocabulary
from opd_jax.losses.terms import Term
from opd_jax.losses.vocab_shard import Target
from opd_jax.losses.vocabulary import WeightedTerm
from opd_jax.method import Method
from opd_jax.methods import discover
from opd_jax.methods.aopd import zero
from opd_jax.methods.iw_opd import fixed_prefix, linear, mean_one, signed
from opd_jax.rollouts import RolloutMix
from opd_jax.sharding import mesh_layout

EXACT = 1e-9  # relative: what counts as equal in float64
PLAIN = 1e-3  # relative: what counts as different
FIXED = 1e-3  # nats from the closed form
ON_POLICY = RolloutMix(student=1.0)


class Line(NamedTuple):
  """One certificate. Numbers are relative to the exact gradient's size; None where they mean nothing."""

  kind: str  # 'method', 'estimator', 'exact', 'known bad', 'term'
  name: str
  claim: str
  bias: float | None
  cosine: float | None
  deviation: float | None  # of one response's gradient
  fixed_point: (
    float | None
  )  # KL in nats between where it ends and the closed form, at the worst context
  holds: bool


def makers() -> Mapping[str, Callable[[], Method]]:
  """Every method with its defaults, its top k cut to this world, and the variants that papers compare."""
  found: dict[str, Callable[..., Method]] = {}
  for entry in discover():
    small = {'k': K} if 'k' in inspect.signature(entry.make).parameters else {}
    found[entry.name] = functools.partial(entry.make, **small)
  aopd, iw_opd, opd_plus, gkd = (found[name] for name in ('aopd', 'iw_opd', 'opd_plus', 'gkd'))
  forward = divergences.forward_kl()
  found['aopd, zero gate'] = functools.partial(aopd, intervene=zero())
  for weight in (signed, linear, fixed_prefix, mean_one):
    found[f'iw_opd, {weight.__name__}'] = functools.partial(iw_opd, weight=weight())
  found['opd_plus, forward_kl'] = functools.partial(opd_plus, divergence=forward)
  found['gkd, forward_kl on-policy'] = functools.partial(
    gkd, divergence=forward, student_fraction=1.0
  )
  return found


def certify_method(name: str, make: Callable[[], Method], world: World) -> Line:
  """Bias against what it claims; without a claim, how it lies to the reverse KL; and where it ends."""
  method = make()
  claimed = method.descends
  log_q, log_r = (jax.nn.log_softmax(table) for table in (world.teacher, world.reference))
  truth = exact(
    claimed or divergences.reverse_kl(),
    method.rollout,
    world.student,
    world,
    method.optimum(log_q, log_r),
  )
  bias, cosine, deviation = compared(*moments(by_method(method), method.rollout, world), truth)
  end = bigram.fixed_point(method, world)
  holds = end <= FIXED and (bias <= EXACT if claimed else cosine > 0)
  claim = f'unbiased for {claimed.name}' if claimed else 'along reverse_kl'
  return Line('method', name, claim, bias, cosine, deviation, end, holds)


def certify_estimator(estimator: Estimator, world: World) -> Line:
  """Bias against the exact gradient of the divergence it claims."""
  kind, name, claimed, gradient = estimator
  truth = exact(claimed, ON_POLICY, world.student, world)
  bias, cosine, deviation = compared(*moments(gradient, ON_POLICY, world), truth)
  return Line(
    kind, name, f'unbiased for {claimed.name}', bias, cosine, deviation, None, bias <= EXACT
  )


def _bad(name: str, claim: str, numbers: tuple[float, float, float], holds: bool) -> Line:
  return Line('known bad', name, claim, *numbers, None, holds)


def known_bad(world: World) -> Iterator[Line]:
  """The field's public mistakes, each held to *how* it is wrong."""
  truth = {each: exact(each, ON_POLICY, world.student, world) for each in ALL_DIVERGENCES}
  reverse, forward, half = (
    divergences.reverse_kl(),
    divergences.forward_kl(),
    divergences.jensen_shannon(beta=0.5),
  )
  run = lambda gradient, divergence: compared(
    *moments(gradient, ON_POLICY, world), truth[divergence]
  )
  mean = lambda gradient: moments(gradient, ON_POLICY, world)[0]

  numbers = run(by_term(terms.likelihood()), reverse)  # ∇ k1 = ∇ log p: the teacher has gone
  size = float(jnp.linalg.norm(mean(by_term(terms.likelihood()))))
  yield _bad('k1 as a loss', 'zero on average, noise in each', numbers, size < EXACT < numbers[2])
  raw, stopped = (student_top(reverse, 2, close) for close in (supports.raw(), supports.stopped()))
  numbers = run(raw, reverse)
  gap = jnp.linalg.norm(mean(raw) - mean(stopped) - mean(by_loss(kept_mass)))
  claim = 'biased by the gradient of the kept mass'
  yield _bad('reverse_kl, raw top 2', claim, numbers, numbers[0] > PLAIN and float(gap) < EXACT)
  for divergence in ALL_DIVERGENCES:
    if divergence is not reverse:
      numbers = run(by_advantage(functools.partial(advantages.naive, divergence)), divergence)
      yield _bad(f'{divergence.name}: naive advantage', 'biased', numbers, numbers[0] > PLAIN)
  for name, gradient, divergence in (
    ('reverse_kl, renormalised top 1', student_top(reverse, 1, supports.renorm()), reverse),
    ('jensen_shannon, detached weights', by_loss(detached_jsd), half),
  ):
    numbers = run(gradient, divergence)
    yield _bad(name, 'no gradient at all', numbers, float(jnp.linalg.norm(mean(gradient))) < EXACT)
  clamped = divergences.clamped_per_entry(forward, most=0.05)
  first = jnp.zeros((1 + V, 1)).at[0].set(1.0)  # the printed test vector is the first context
  both = [
    mean(by_term(terms.divergence(each, supports.full()))) * first for each in (clamped, forward)
  ]
  numbers = compared(both[0], 0.0, both[1])
  yield _bad(
    'forward_kl, clamped per entry', 'turned against the true gradient', numbers, numbers[1] < 0
  )


def check_term(name: str, term: Term, world: World) -> Line:
  """The one-sweep gradient against finite differences, in states and head."""
  rng = np.random.RandomState(5)
  number = lambda *shape: jnp.asarray(rng.randn(*shape))
  response = jnp.asarray([[0, 3, 1], [2, 2, 4]], jnp.int32)
  target = Target(hidden=number(2, T, V), head=number(V, V))
  known = {
    'advantage': number(2, T),
    'teacher_logp': -1 + 0 * number(2, T),
    'hidden': number(2, T, 4),
  }
  known['behaviour_logp'] = known['teacher_logp'] - 0.6
  weighted = WeightedTerm(
    term, jnp.abs(number(2, T)) + 0.1, {name: known[name] for name in term.reads}
  )

  def loss(states, head):
    return vocabulary.weighted_sum(
      states, head, response, target, (weighted,), layout=mesh_layout()
    )[0]

  try:
    chex.assert_numerical_grads(
      jax.jit(loss), (number(2, T, 4), number(4, V)), order=1, atol=1e-6, rtol=1e-6, modes=['rev']
    )
    holds = True
  except AssertionError:
    holds = False
  return Line('term', name, 'finite differences agree', None, None, None, None, holds)


def certificates(
  names: Sequence[str] | None, progress: Callable[[int, int, str], None]
) -> list[Line]:
  """Some certificates by name, or all of them.

  Args:
    names: of methods, their variants, estimators or terms; None certifies everything, also what is known to be bad.
    progress: told how many are done, of how many, and which comes next.
  """
  with jax.enable_x64(True):
    here = bigram.world()
    work: dict[str, Callable[[], Any]] = {
      name: functools.partial(certify_method, name, make, here) for name, make in makers().items()
    }
    work |= {each.name: functools.partial(certify_estimator, each, here) for each in estimators()}
    work['known bad'] = lambda: list(known_bad(here))
    work |= {
      name: functools.partial(check_term, name, term, here) for name, term in checked_terms()
    }
    if unknown := [name for name in names or () if name not in work]:
      near = sorted(
        {found for name in unknown for found in work if name.split(',')[0].lower() in found.lower()}
      )
      raise ValueError(
        f'certify: nothing is called {", ".join(map(repr, unknown))}; '
        + (f'near it: {"; ".join(near)}.' if near else f'there are {"; ".join(work)}.')
      )
    lines: list[Line] = []
    wanted = list(names or work)
    for number, name in enumerate(wanted):
      progress(number, len(wanted), name)
      found = work[name]()
      lines += found if isinstance(found, list) else [found]
  return lines
