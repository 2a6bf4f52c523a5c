"""Floor 3. Judges that steer: contexts that show one sibling of a response, and sums of logits under them."""

from collections.abc import Sequence
from typing import Any

from opd_jax import ramps
from opd_jax.data.tokenizers import Message
from opd_jax.judges import contexts, refresh, spec
from opd_jax.judges.scenes import Context, Scene
from opd_jax.judges.spec import Combined
from opd_jax.ramps import Number

SHOWN = '\n\nAn attempt at this problem:\n'


def success(*, number: int, introduction: str = SHOWN) -> Context:
  """Shows a failed response the right sibling with this number; nothing where there are fewer, or where it is right.

  Args:
    number: of the sibling, from 0.
    introduction: between the question and the sibling.
  """

  def context(scene: Scene) -> Sequence[Message] | None:
    return _shown(
      scene, [mate.text for mate in scene.mates if mate.reward > 0], number, introduction
    )

  return context


def failure(*, number: int, own: bool = True, introduction: str = SHOWN) -> Context:
  """Shows a failed response the wrong one with this number; nothing where there are fewer, or where it is right.

  Args:
    number: of the response, from 0.
    own: counts the response itself, as arXiv:2605.12400 prints its set; False takes siblings only.
    introduction: between the question and the response.
  """

  def context(scene: Scene) -> Sequence[Message] | None:
    texts = [scene.text] * own + [mate.text for mate in scene.mates if mate.reward <= 0]
    return _shown(scene, texts, number, introduction)

  return context


def _shown(
  scene: Scene, texts: Sequence[str], number: int, introduction: str
) -> Sequence[Message] | None:
  if not scene.reward <= 0 or number >= len(texts):
    return None
  return contexts.behind(scene.problem, introduction + texts[number])


def steered(
  *,
  siblings: int,
  strength: Number = 3.0,
  failures: bool = True,
  solution: bool = True,
  own: bool = True,
  introduction: str = SHOWN,
  **options: Any,
) -> Combined:
  """The student as it was when the stage began, steered from failed attempts towards right ones.

      z = z0 + λ (z̄+ - z̄-),      z̄± the mean of the logits behind each right or wrong attempt

  arXiv:2605.12400. Only failed responses are judged; a question without a right attempt, or without a wrong one, is
  left out.

  Args:
    siblings: samples to a question.
    strength: λ.
    failures: False steers away from the bare question, z0 + λ (z̄+ - z0); λ = 1 is then the mean of the right attempts.
    solution: counts the solution of the data set among the right attempts, where there is one.
    own: counts the response itself among the wrong ones.
    introduction: between the question and an attempt.
    options: of `judges.itself`.
  """
  if siblings < 2:
    raise ValueError(
      f'steered: it takes siblings at least 2, got {siblings}. Bind Stage.samples, too.'
    )
  reader = lambda context=None: spec.itself(**{**options, 'context': context})
  right = [success(number=g, introduction=introduction) for g in range(siblings - 1)]
  if solution:
    right.append(_of_failed(contexts.solution(introduction=introduction)))
  wrong = [failure(number=g, own=own, introduction=introduction) for g in range(siblings)]
  towards = (strength, spec.averaged(members=[reader(context) for context in right]))
  if not failures:
    return spec.combined(parts=((ramps.scaled(strength, -1.0, plus=1.0), reader()), towards))
  away = spec.averaged(members=[reader(context) for context in wrong[: siblings - (not own)]])
  return spec.combined(parts=((1.0, reader()), towards, (ramps.scaled(strength, -1.0), away)))


def _of_failed(context: Context) -> Context:
  return lambda scene: context(scene) if scene.reward <= 0 else None


def trust_region(*, rate: Number, **options: Any) -> Combined:
  """A mixture of the student as it was when the stage began and as it is: (1 - κ) z_ref + κ z_live.

  Args:
    rate: κ.
    options: of `judges.itself`, for both: a context, a template.
  """
  lowest, highest = ramps.extremes(rate)
  if not 0 <= lowest <= highest <= 1:
    raise ValueError(f'trust_region: rate must lie in [0, 1] wherever it moves, got {rate}.')
  still, live = spec.itself(**options), spec.itself(**{**options, 'refresh': refresh.live()})
  return spec.combined(parts=((ramps.scaled(rate, -1.0, plus=1.0), still), (rate, live)))
