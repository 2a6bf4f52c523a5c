"""One term of every kind, a small world, and one program for all of them: a case is a choice of coefficients.

Terms are part of a program and coefficients are not: all cases are compiled as one sum, and a single case is that sum
with every other coefficient at zero.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax.losses import vocabulary
from opd_jax.losses.divergences import (
  BoundedReverseKL,
  ClampedPerEntry,
  ForwardKL,
  JensenShannon,
  ReverseKL,
  TotalVariation,
)
from opd_jax.losses.rest_rules import (
  Centred,
  PerCandidate,
  Renormalised,
  Stopped,
  Tail,
  TeacherOnly,
  Unclosed,
)
from opd_jax.losses.supports import FULL, Columns, SameRank, StudentTopK, Support, TeacherTopK
from opd_jax.losses.terms import (
  K2,
  K3,
  Candidates,
  ClippedCandidates,
  ClippedRatio,
  DivergenceTerm,
  EntriesAtIds,
  HiddenDistance,
  ImportanceRatio,
  Likelihood,
  PolicyGradient,
  TruncatedRatio,
  WeightedTerm,
)
from opd_jax.losses.vocab_shard import Target
from opd_jax.sharding import mesh_layout

B, R, D, DQ, V, K, C = 8, 3, 8, 12, 40, 5, 3
JUDGES = ('teacher', 'reference')


def on(divergence, entries, rest, **settings) -> DivergenceTerm:
  """A divergence on some entries."""
  return DivergenceTerm(
    divergence=divergence, support=Support(entries=entries, rest=rest), **settings
  )


def whole(divergence, **settings) -> DivergenceTerm:
  """A divergence on all of them."""
  return DivergenceTerm(divergence=divergence, support=FULL, **settings)


BEST, OWN = TeacherTopK(K), StudentTopK(K)
CASES = {
  'policy gradient': PolicyGradient(),
  'likelihood': Likelihood(),
  'clipped ratio': ClippedRatio(low=0.1, high=0.3, dual=3.0),
  'importance ratio': ImportanceRatio(),
  'k2': K2(),
  'k3': K3(),
  'hidden': HiddenDistance(),
  'candidates': Candidates(),
  'forward full': whole(ForwardKL()),
  'reverse full': whole(ReverseKL()),
  'jsd full': whole(JensenShannon(beta=0.3)),
  'clamped entries': whole(ClampedPerEntry(inner=ForwardKL(), max=0.05)),
  'clamped tokens': whole(ForwardKL(), max_per_token=0.5),
  'hot': whole(JensenShannon(beta=0.5), temperature=2.0),
  'hot reverse': whole(ReverseKL(), temperature=2.0),
  'cold teacher tail': on(ForwardKL(), BEST, Tail(), temperature=0.7),
  'other writer': whole(ReverseKL(), ratio=TruncatedRatio(max=1.5)),
  'other writer tail': on(ForwardKL(), BEST, Tail(), ratio=TruncatedRatio(max=1.5)),
  'reference full': whole(ReverseKL(), of='reference'),
  'reference tail': on(ForwardKL(), BEST, Tail(), of='reference'),
  'teacher tail': on(ReverseKL(), BEST, Tail()),
  'forward tail': on(ForwardKL(), BEST, Tail()),
  'teacher renorm': on(ForwardKL(), BEST, Renormalised()),
  'teacher only': on(ForwardKL(), BEST, TeacherOnly()),
  'teacher raw': on(ReverseKL(), BEST, Unclosed()),
  'teacher stopped': on(ReverseKL(), BEST, Stopped()),
  'teacher centred': on(ReverseKL(), BEST, Centred()),
  'candidates of both': on(ReverseKL(), BEST & OWN, PerCandidate(weight='teacher')),
  'ranks': on(TotalVariation(), SameRank(K), Unclosed()),
  'bounded reverse': on(BoundedReverseKL(bound=1.0), BEST, Renormalised()),
  'student tail': on(JensenShannon(beta=0.5), OWN, Tail()),
  'union': on(ForwardKL(), BEST | OWN, Tail()),
  'intersection': on(ReverseKL(), BEST & OWN, Renormalised()),
  'columns': on(ForwardKL(), Columns((3, 17, 39)), Tail()),
  'composed': on(ForwardKL(), (BEST | Columns((3, 17))) & (OWN | TeacherTopK(2)), Tail()),
  'clipped candidates': ClippedCandidates(clip=ClippedRatio(low=0.1, high=0.3, dual=3.0)),
  'entries at ids': EntriesAtIds(divergence=ReverseKL()),
}
NAMES = tuple(CASES)


@functools.lru_cache
def world(scale: float = 2.0, dtype: str = 'float64'):
  """Hidden states and head of a student, a response, and two judges known whole."""
  rng = np.random.RandomState(0)
  draw = lambda *shape: jnp.asarray(
    scale * rng.randn(*shape) / np.sqrt(shape[-1] if len(shape) == 3 else 1), dtype
  )
  hidden, head = draw(B, R, D), draw(D, V)
  targets = {name: Target(hidden=draw(B, R, DQ), head=draw(DQ, V)) for name in JUDGES}
  response = jnp.asarray(rng.randint(0, V, (B, R)), jnp.int32)
  return hidden, head, response, targets


def weighted(term, seed: int = 0) -> WeightedTerm:
  """A term with random coefficients, a fifth of them zero, and random inputs."""
  rng = np.random.RandomState(seed + 100)
  number = lambda *shape: jnp.asarray(rng.randn(*shape))
  coefficient = jnp.where(number(B, R) > -0.8, number(B, R), 0.0)
  behaviour = -2.0 * jnp.abs(number(B, R)) - 5.0  # ratios on both sides of every bound
  inputs = {
    'advantage': number(B, R),
    'behaviour_logp': behaviour,
    'teacher_logp': behaviour,
    'hidden': number(B, R, D),
    'ids': jnp.asarray(rng.randint(-1, V + 1, (B, R, C)), jnp.int32),
    'weights': number(B, R, C),
    'advantages': number(B, R, C),
    'behaviour_logps': -2.0 * jnp.abs(number(B, R, C)) - 5.0,
    'log_q': -2.0 * jnp.abs(number(B, R, C)),
  }
  return term(coefficient, **{name: inputs[name] for name in term.inputs_wanted})


def every_case(names=NAMES) -> tuple[WeightedTerm, ...]:
  """All cases in one sum."""
  return tuple(weighted(CASES[name], seed) for seed, name in enumerate(names))


def only(terms, number: int) -> tuple[WeightedTerm, ...]:
  """The same sum with all coefficients but those of one term at zero."""
  return tuple(
    each if index == number else each._replace(coefficient=jnp.zeros_like(each.coefficient))
    for index, each in enumerate(terms)
  )


@functools.partial(jax.jit, static_argnames=('layout', 'tile', 'share', 'diagnose'))
def tiled(
  hidden, head, response, targets, terms, *, layout=None, tile=None, share=None, diagnose=None
):
  """((loss, reading), (d hidden, d head)) of the tiled pass; by default on one device."""
  layout = layout or mesh_layout()

  def loss(hidden, head):
    return vocabulary.weighted_sum(
      hidden, head, response, targets, terms,
      layout=layout, tile=tile, share=share, diagnose=diagnose,
    )  # fmt: skip

  return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(hidden, head)


def close(got, want, tolerance: float = 1e-12):
  """Equal to so many digits of the largest entry."""
  for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    scale = max(np.abs(other).max(), 1e-3)
    np.testing.assert_allclose(one / scale, other / scale, rtol=0, atol=tolerance)
