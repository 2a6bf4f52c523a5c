"""Floor 5. Certificates compare the *expectation* of a gradient, by enumeration, with its claim.

A method runs through its own code on every batch of a small world: two questions, two samples of each, with mixed
rewards. Bad estimators are certified too, as bad, with their numbers: a certificate that could not fail would prove
nothing.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from opd_jax.certify import bigram, terms
from opd_jax.certify.bigram import Gradient, World, exact, optimum_of
from opd_jax.certify.estimators import (
  ALL_DIVERGENCES,
  Estimator,
  checked_terms,
  detached_jsd,
  estimators,
  kept_mass,
  student_top,
  whole,
)
from opd_jax.certify.expectations import compared, fixed_point, moments
from opd_jax.certify.gradients import by_advantage, by_loss, by_method, by_term
from opd_jax.claims import Claim, Converges, Nothing, Unbiased, to_teacher
from opd_jax.losses import advantages
from opd_jax.losses.divergences import (
  ClampedPerEntry,
  Divergence,
  ForwardKL,
  JensenShannon,
  ReverseKL,
)
from opd_jax.losses.rest_rules import Renormalised, Stopped, Unclosed
from opd_jax.losses.terms import Likelihood
from opd_jax.method import Method
from opd_jax.methods import discover
from opd_jax.rollouts import RolloutMix

EXACT = 1e-9  # relative: what counts as equal in float64
PLAIN = 1e-3  # relative: what counts as different
FIXED = 1e-3  # nats from the optimum
ROUNDS = 4  # of the search for it
TOP_K = 2  # what a method's top k is cut to: fewer than the world's three tokens
ON_POLICY = RolloutMix()


class Line(NamedTuple):
  """One certificate. Numbers are relative to the exact gradient's size; None where they mean nothing."""

  kind: str  # 'method', 'estimator', 'exact', 'known bad', 'term'
  name: str
  claim: str
  bias: float | None
  cosine: float | None
  deviation: float | None  # of one batch's gradient
  fixed_point: (
    float | None
  )  # KL in nats between where it ends and the optimum, at the worst context
  holds: bool


def makers(module: ModuleType | None = None) -> Mapping[str, Callable[[], Method]]:
  """Every method with its defaults, its top k cut to this world, and its variants: 'aopd, zero gate'.

  Args:
    module: where methods are looked for; None takes those of the library.
  """
  methods: dict[str, Callable[[], Method]] = {}
  for entry in discover(module):
    small = {'k': TOP_K} if 'k' in inspect.signature(entry.make).parameters else {}
    methods[entry.name] = functools.partial(entry.make, **small)
    for variant, settings in entry.variants.items():
      methods[f'{entry.name}, {variant}'] = functools.partial(entry.make, **small | dict(settings))
  return methods


def _described(claim: Claim) -> str:
  if isinstance(claim, Nothing):
    return f'nothing: {claim.why}'
  kind = f'unbiased for {claim.divergence.name}' if isinstance(claim, Unbiased) else 'converges'
  if claim.optimum is not to_teacher:
    return f'{kind}, to {claim.optimum}'
  return kind if isinstance(claim, Unbiased) else 'converges to the teacher'


def certify_method(name: str, method: Method) -> Line:
  """Compares a method with its claim: bias or cosine over whole batches, and the fixed point of its gradient.

  `Nothing` is measured against the reverse KL to the teacher, and never fails.
  """
  claim, writers, world = method.claim, method.rollout, bigram.batched()
  divergence = claim.divergence if isinstance(claim, Unbiased) else ReverseKL()
  optimum = to_teacher if isinstance(claim, Nothing) else claim.optimum
  truth = exact(divergence, writers, world.student, world, optimum_of(optimum, world))
  gradient = by_method(method)
  (moment,) = moments((gradient,), writers, world)
  bias, cosine, deviation = compared(*moment, truth)
  end = fixed_point(
    gradient,
    writers,
    world,
    optimum,
    enough=FIXED,
    rounds=1 if isinstance(claim, Nothing) else ROUNDS,
  )
  holds = isinstance(claim, Nothing) or (
    end <= FIXED and (cosine > 0 if isinstance(claim, Converges) else bias <= EXACT)
  )
  return Line('method', name, _described(claim), bias, cosine, deviation, end, holds)


def certify_estimators(wanted: Sequence[Estimator], world: World) -> list[Line]:
  """Bias of each against the exact gradient of the divergence it claims: one program for all of them."""
  lines = []
  all_moments = moments([estimator.gradient for estimator in wanted], ON_POLICY, world)
  truth = _exact_on_policy(world)
  for (kind, name, divergence, _), moment in zip(wanted, all_moments, strict=True):
    bias, cosine, deviation = compared(*moment, truth[divergence])
    claim = f'unbiased for {divergence.name}'
    lines.append(Line(kind, name, claim, bias, cosine, deviation, None, bias <= EXACT))
  return lines


def _exact_on_policy(world: World) -> dict[Divergence, Any]:
  gradients = bigram.exact_of_each(ALL_DIVERGENCES, ON_POLICY, world.student, world)
  return dict(zip(ALL_DIVERGENCES, gradients, strict=True))


def _bad_gradients() -> dict[str, Gradient]:
  """Gradients of the mistakes, and of what explains them."""
  reverse, forward = ReverseKL(), ForwardKL()
  naive = lambda each: by_advantage(functools.partial(advantages.naive, each))
  return {
    'k1': by_term(Likelihood()),  # ∇ k1 = ∇ log p: the teacher has gone
    'raw': student_top(reverse, 2, Unclosed()),
    'stopped': student_top(reverse, 2, Stopped()),
    'kept mass': by_loss(kept_mass),
    'renormalised': student_top(reverse, 1, Renormalised()),
    'detached': by_loss(detached_jsd),
    'clamped': whole(ClampedPerEntry(inner=forward, max=0.05)),
    'forward': whole(forward),
    **{each.name: naive(each) for each in ALL_DIVERGENCES if each != reverse},
  }


def known_bad(world: World) -> list[Line]:
  """Certifies the field's public mistakes: each must be wrong in its known way."""
  truth, gradients = _exact_on_policy(world), _bad_gradients()
  reverse, half = ReverseKL(), JensenShannon(beta=0.5)
  by_name = dict(zip(gradients, moments(list(gradients.values()), ON_POLICY, world), strict=True))
  against = lambda name, divergence: compared(*by_name[name], truth[divergence])
  mean = {name: moment[0] for name, moment in by_name.items()}
  size = lambda gradient: float(jnp.linalg.norm(gradient))
  bad = lambda name, claim, numbers, holds: Line(
    'known bad', name, claim, numbers[0], numbers[1], numbers[2], None, holds
  )

  numbers = against('k1', reverse)
  holds = size(mean['k1']) < EXACT < numbers[2]
  lines = [bad('k1 as a loss', 'zero on average, noise in each', numbers, holds)]
  numbers = against('raw', reverse)
  gap = size(mean['raw'] - mean['stopped'] - mean['kept mass'])
  claim = 'biased by the gradient of the kept mass'
  lines.append(bad('reverse_kl, raw top 2', claim, numbers, numbers[0] > PLAIN and gap < EXACT))
  for divergence in ALL_DIVERGENCES:
    if divergence != reverse:
      numbers = against(divergence.name, divergence)
      name = f'{divergence.name}: naive advantage'
      lines.append(bad(name, 'biased', numbers, numbers[0] > PLAIN))
  for name, which, divergence in (
    ('reverse_kl, renormalised top 1', 'renormalised', reverse),
    ('jensen_shannon, detached weights', 'detached', half),
  ):
    numbers, holds = against(which, divergence), size(mean[which]) < EXACT
    lines.append(bad(name, 'no gradient at all', numbers, holds))
  clamped, forward = (mean[name][:, :1] for name in ('clamped', 'forward'))
  numbers = compared(clamped, 0.0, forward)  # at position 0: the printed test vector
  claim = 'turned against the true gradient'
  return [*lines, bad('forward_kl, clamped per entry', claim, numbers, numbers[1] < 0)]


def certify_term(name: str, term: Any) -> Line:
  """Compares a term's gradient from the vocabulary pass with finite differences."""
  holds = terms.agrees(term)
  return Line('term', name, 'finite differences agree', None, None, None, None, holds)


def _work(module: ModuleType | None) -> dict[str, Callable[[], Line | list[Line]]]:
  """Everything that can be certified, by name; of a user's module, its methods only."""
  work: dict[str, Callable[[], Line | list[Line]]] = {
    name: lambda name=name, make=make: certify_method(name, make())
    for name, make in makers(module).items()
  }
  if module is not None:
    return work
  single = bigram.single()
  work |= {each.name: lambda each=each: certify_estimators([each], single) for each in estimators()}
  work['known bad'] = lambda: known_bad(single)
  return work | {
    name: functools.partial(certify_term, name, term) for name, term in checked_terms()
  }


def _check_names(names: Sequence[str], work: Mapping[str, Any]) -> None:
  if unknown := [name for name in names if name not in work]:
    stems = [name.split(',')[0].lower() for name in unknown]
    near = [name for name in work if any(stem in name.lower() for stem in stems)]
    raise ValueError(
      f'certify: nothing is called {", ".join(map(repr, unknown))}; '
      + (f'near it: {"; ".join(near)}.' if near else f'there are {"; ".join(work)}.')
    )


def certificates(
  names: Sequence[str] | None,
  progress: Callable[[int, int, str], None],
  module: ModuleType | None = None,
) -> list[Line]:
  """Some certificates by name, or all of them.

  Args:
    names: of methods, their variants, estimators or terms; None certifies everything, known mistakes included.
    progress: called with the number of certificates done, their total, and the name of the next one.
    module: a module of the user's, of which methods and their variants are certified; None certifies the library.
  """
  with jax.enable_x64(True):
    work = _work(module)
    _check_names(names or (), work)
    if names is None and module is None:  # estimators share a program
      shared = list(estimators())
      first = shared[0].name
      work = {name: run for name, run in work.items() if name not in {e.name for e in shared[1:]}}
      work[first] = lambda: certify_estimators(shared, bigram.single())
    lines: list[Line] = []
    selected = list(names or work)
    for number, name in enumerate(selected):
      progress(number, len(selected), name)
      result = work[name]()
      lines += result if isinstance(result, list) else [result]
  return lines
