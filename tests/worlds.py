"""What several tests of methods share: evidence about a random batch, from logits or from tiny models."""

import jax
import jax.numpy as jnp
import numpy as np

from opd_jax.certify.bigram import scores_of
from opd_jax.data.prompts import left_padded
from opd_jax.inference import scorer
from opd_jax.losses.vocab_shard import Target
from opd_jax.method import Evidence, target_of
from opd_jax.models import presets, transformer
from opd_jax.sharding import mesh_layout
from opd_jax.training.step import Batch
from opd_jax.types import Rollout

LENGTHS = (6, 1, 0, 4, 6, 3, 5, 2)  # an empty row among them
ROWS, R = len(LENGTHS), 6


def rollout_of(prompts, response, student_logp) -> Rollout:
  mask = np.arange(response.shape[1]) < np.array(LENGTHS)[:, None]
  rows = len(LENGTHS)
  return Rollout(
    prompt=prompts,
    response=response,
    mask=mask,
    by_student=mask,
    behaviour_logp=student_logp,
    logp=student_logp,
    entropy=None,
    top_k=None,
    ended_by=np.ones(rows, np.int32),
    version=np.zeros(rows, np.int32),
    reward=np.array([1, 0, 1, 0, np.nan, 1, 0, 0], np.float32),
  )


def prompts_of(seed: int, vocabulary: int):
  rng = np.random.RandomState(seed)
  return left_padded(
    [rng.randint(0, vocabulary, 1 + number % 4).tolist() for number in range(ROWS)], width=4, pad=0
  )


def from_logits(student, teacher, reference, response, needs) -> tuple[Evidence, Target]:
  """Evidence where every model is an array of logits [B, R, V]; the target's head is the identity."""
  mine = scores_of(student, response, needs.student)
  ids = mine.top_k.ids if needs.at_student_top_k and mine.top_k else None
  evidence = Evidence(
    rollout=rollout_of(prompts_of(0, student.shape[-1]), response, mine.logp),
    student=mine,
    teacher=scores_of(teacher, response, needs.teacher, ids),
    others={name: scores_of(reference, response) for name in needs.others},
    step=jnp.int32(0),
    key=jax.random.key(0),
  )
  return evidence, target_of(evidence, jnp.eye(student.shape[-1], dtype=jnp.asarray(teacher).dtype))


def models():
  """A student, a teacher of another width and a reference, all tiny."""
  configs = presets.tiny(), presets.tiny(width=32, tied=False), presets.tiny()
  keys = jax.random.split(jax.random.key(7), 3)
  return [
    (config, transformer.init(config, mesh_layout(), key))
    for config, key in zip(configs, keys, strict=True)
  ]


def evidence_of(method, student, teacher, reference, layout, seed: int = 0) -> Evidence:
  """Evidence from models, scored as a run scores it."""
  (config, params), (judge, judge_params) = student, teacher
  prompts = prompts_of(seed, config.vocab_size)
  response = (
    np.random.RandomState(seed + 1).randint(0, config.vocab_size, (ROWS, R)).astype(np.int32)
  )
  ask = lambda model, needs, ids=None: scorer.score(
    model[1],
    prompts.tokens,
    prompts.length,
    response,
    ids,
    config=model[0],
    layout=layout,
    needs=needs,
  )
  needs = method.needs
  mine = ask((config, params), needs.student)
  ids = mine.top_k.ids if needs.at_student_top_k else None
  return Evidence(
    rollout=rollout_of(prompts, response, np.asarray(mine.logp)),
    student=mine,
    teacher=ask((judge, judge_params), needs.teacher, ids),
    others={name: ask(reference, scorer.Needs()) for name in needs.others},
    step=jnp.int32(0),
    key=jax.random.key(0),
  )


def batch_of(method, evidence: Evidence, teacher, layout) -> Batch:
  head = transformer.bind(teacher[0], layout, teacher[1]).head()
  return Batch(
    rollout=evidence.rollout,
    target=target_of(evidence, head),
    weighted_terms=jax.jit(method.weigh)(evidence),
  )
