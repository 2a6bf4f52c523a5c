"""Floor 5. Which judges of a stage take nothing of the devices that write and learn."""

from opd_jax.judges.spec import Judge, Served, readers
from opd_jax.training.experiment import Experiment, Stage


def apart_judges(experiment: Experiment, stage: Stage) -> frozenset[str]:
  """The judges that are asked and whose models, all of them, are behind servers or share no device with the student."""
  own = [experiment.layout, experiment.writing_layout]
  lies_apart = lambda judge: (
    isinstance(judge, Served)
    or (
      isinstance(judge, Judge)
      and judge.weights is not None
      and judge.layout is not None
      and all(judge.layout.apart(layout) for layout in own)
    )
  )
  return frozenset(
    name
    for name in stage.asked
    if all(lies_apart(judge) for _, judge in readers(stage.judges[name]))
  )
