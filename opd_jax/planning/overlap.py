"""Floor 6. Who works when, where judges have devices of their own, and who stands idle: from what each verb takes.

Times are those of a roofline: products at a share of the peak, decoding no faster than it reads its weights and cache,
work shared evenly by the devices of a mesh. What devices send each other is left out.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from opd_jax.judges.spec import AnyJudge, Judge, Served, readers
from opd_jax.models import transformer
from opd_jax.planning.cost import Shapes, config_of, decoding_reads, parts_of_step
from opd_jax.planning.flops import OF_BANDWIDTH, Chip, scoring
from opd_jax.planning.memory import bytes_each
from opd_jax.training.apart import apart_judges
from opd_jax.training.experiment import Experiment, Stage


class Times(NamedTuple):
  """Seconds of one step."""

  write: float
  update: float  # with the scores of whoever lies on the student's devices
  judges: Mapping[str, float]  # on devices of their own


def has_devices(judge: AnyJudge) -> bool:
  """Whether its time can be told from here; that of a server cannot."""
  return not any(isinstance(each, Served) for _, each in readers(judge))


def times_of(experiment: Experiment, stage: Stage, chip: Chip, mfu: float, shapes: Shapes) -> Times:
  """Of a step whose responses are as long as their budget.

  Args:
    experiment, stage: what is planned.
    chip, mfu: a device, and the share of its peak that products reach.
    shapes: of models that are not there yet, by name.
  """
  parts = parts_of_step(experiment.student, stage, shapes)
  apart = apart_judges(experiment, stage)
  passes = lambda cost, devices: (cost.train + cost.score) / (mfu * chip.flops * devices)
  rows, budget = stage.prompts * stage.samples, stage.sampling.budget
  judges = {name: 0.0 for name in sorted(apart) if has_devices(stage.judges[name])}
  for name in judges:
    for _, judge in readers(stage.judges[name]):
      assert isinstance(judge, Judge) and judge.layout is not None
      work = scoring(config_of(judge, experiment.student, shapes), rows, budget)
      judges[name] += passes(work, judge.layout.mesh.size)
  own = [cost for name, cost in parts.items() if name not in apart and name != 'write']
  place = experiment.writing_layout
  shape = transformer.abstract(transformer.decoding_config(experiment.student), place)
  read = decoding_reads(
    experiment.student, stage, weights=bytes_each(shape), devices=place.mesh.size
  )
  computed = parts['write'].sample / (mfu * chip.flops * place.mesh.size)
  return Times(
    write=max(computed, read / (OF_BANDWIDTH * chip.bandwidth)) if parts['write'].sample else 0.0,
    update=sum(passes(cost, experiment.layout.mesh.size) for cost in own),
    judges=judges,
  )


def idle(times: Times, staleness: int, factors: Sequence[float] = (1.0,) * 64) -> dict[str, float]:
  """The share of time in which the student and each judge stand idle, as `training.pipeline` puts them in order.

  A student that writes and learns for 2 s and a teacher that scores for 2 s:

  >>> idle(Times(1.0, 1.0, {'teacher': 2.0}), staleness=0)
  {'student': 0.5, 'teacher': 0.5}
  >>> idle(Times(1.0, 1.0, {'teacher': 2.0}), staleness=1)
  {'student': 0.0, 'teacher': 0.0}

  Args:
    times: of a step.
    staleness: of the stage.
    factors: of each batch, how much longer than usual everything takes; the pipeline fills in the first quarter.
  """
  now, warm = 0.0, len(factors) // 4
  free = dict.fromkeys(times.judges, 0.0)
  scored: list[float] = []
  spans: list[tuple[str, float, float]] = []
  begins = []
  for step, factor in enumerate(factors):
    begins.append(now)
    while len(scored) < min(step + staleness + 1, len(factors)):
      batch = factors[len(scored)]
      now += batch * times.write
      for name, seconds in times.judges.items():
        began = max(free[name], now)
        free[name] = began + batch * seconds
        spans.append((name, began, free[name]))
      scored.append(max(free.values(), default=now))
    if scored[step] > now:
      spans.append(('', now, scored[step]))  # the student waits
      now = scored[step]
    now += factor * times.update
  begin, end = begins[warm], begins[-1 - min(staleness, warm)]
  inside = lambda name: sum(
    max(min(stop, end) - max(start, begin), 0.0) for who, start, stop in spans if who == name
  )
  share = lambda name: round(inside(name) / (end - begin), 4)
  return {'student': share(''), **{name: round(1 - share(name), 4) for name in times.judges}}
