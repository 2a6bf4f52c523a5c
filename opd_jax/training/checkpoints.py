"""Floor 5. Checkpoints: written in the background, whole or not at all, and proved when they are read.

A checkpoint is the arrays of a `State` and a `RunPosition`: everything a run needs to go on as if nothing had
happened. Only a base that is frozen beside adapters is not written: a run loads it again from where it came, and
compares it with the digest that the checkpoint has of it. With them lies the fingerprint of the arrays; a checkpoint
that does not match it is damaged, is reported, and the one before it is used.
"""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from opd_jax.models import adapters
from opd_jax.processes import barrier, blank, everywhere, placed, to_host
from opd_jax.storage import places
from opd_jax.storage.fingerprint import digest, fingerprint
from opd_jax.storage.places import Place
from opd_jax.training import resuming
from opd_jax.training.experiment import Experiment
from opd_jax.training.resuming import Plan
from opd_jax.training.state import Moved, RunPosition, State, begin
from opd_jax.types import Params

Say = Callable[[str], None]


class Restored(NamedTuple):
  """What a checkpoint holds."""

  moved: Moved
  position: RunPosition
  base: str | None  # `_base_digest` of what was frozen
  flight: Sequence[Mapping[str, Any]] = ()  # batches on their way: see `pipeline`


def _base_digest(base: Params) -> str | None:
  """Hash of what is frozen; None where nothing is."""
  return digest(base) if base else None


def state_of(restored: Restored, experiment: Experiment, say: Say) -> State:
  """The state that goes on; what was frozen comes from where it came from at the beginning."""
  base = adapters.NO_BASE if experiment.lora is None else begin(experiment, say)[0]
  if restored.base != _base_digest(base):
    raise ValueError(
      f'checkpoints: {experiment.weights or f"what seed {experiment.seed} draws"} has changed since these adapters '
      'were trained beside it. Put the old weights back, or begin anew with another --workdir.'
    )
  return State(*restored.moved, base=base)


class Checkpointer:
  """The checkpoints of one run.

  Args:
    plan: of the call; it must be that of the checkpoints, see `resuming.check`.
    keep, every: how many checkpoints stay, and how many steps lie between two.
    say: told of damage, and of what has changed.
    extend: whether the last stage may be longer than the checkpoints say.
  """

  def __init__(
    self, workdir: Place, *, plan: Plan, keep: int, every: int, say: Say, extend: bool = False
  ):
    self.folder, self.plan, self.every, self.say, self.extend = (
      places.absolute(workdir) / 'checkpoints',
      plan,
      every,
      say,
      extend,
    )
    try:
      options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, step_prefix='step', cleanup_tmp_directories=True
      )
      self._manager = ocp.CheckpointManager(self.folder, options=options)
    except OSError as error:
      raise ValueError(
        f'checkpoints: {self.folder} cannot be written ({error}). Choose another --workdir.'
      ) from error

  @property
  def latest(self) -> int | None:
    return self._manager.latest_step()

  def save(
    self, state: State, position: RunPosition, flight: Sequence[Mapping[str, Any]] = ()
  ) -> None:
    """Begins to write; returns when the arrays have been copied."""
    if position.step in self._manager.all_steps():
      return
    record = {
      'position': position._asdict(),
      **self.plan._asdict(),
      'fingerprint': fingerprint(state.moved),
      'base': _base_digest(state.base),
      'flight': [*flight],
    }
    moved = state.moved if everywhere(state.moved) else to_host(state.moved)
    arguments = ocp.args.Composite(
      state=ocp.args.StandardSave(moved), run=ocp.args.JsonSave(record)
    )
    with jax.profiler.TraceAnnotation('checkpoint'):
      self._try(lambda: self._manager.save(position.step, args=arguments), position.step)

  def finish(self) -> None:
    """Waits until everything is on disk."""
    self._try(self._manager.wait_until_finished, self.latest or 0)

  def _try(self, write: Callable[[], Any], step: int) -> None:
    try:
      write()
    except (
      Exception
    ) as error:  # tensorstore and orbax raise many types; what a user can mend is the disk
      self._manager.reload()
      good = [kept for kept in self._manager.all_steps() if kept < step]
      text = str(error).strip().splitlines()
      raise ValueError(
        f'checkpoints: {self.folder} cannot be written at step {step} ({type(error).__name__}: '
        f'{text[0][:200] if text else ""}). '
        f'{f"The checkpoint of step {max(good)} is whole; free" if good else "Free"} some space or mend the '
        'permissions, then run the same command again.'
      ) from error

  def restore(self, target: Callable[[RunPosition], State]) -> Restored | None:
    """The newest checkpoint that is whole; None where there is none yet.

    Args:
      target: shapes and shardings of the state at a place.
    """
    for step in sorted(self._manager.all_steps(), reverse=True):
      try:
        record = self._manager.restore(step, args=ocp.args.Composite(run=ocp.args.JsonRestore()))[
          'run'
        ]
        position = RunPosition(**record['position'])
        saved = Plan(record['config'], record.get('steps', self.plan.steps))
      except Exception as error:
        self._damaged(step, error)
        continue
      resuming.check(saved, self.plan, folder=self.folder, extend=self.extend, say=self.say)
      wanted = target(position).moved
      whole = wanted if everywhere(wanted) else blank(wanted)
      arguments = ocp.args.Composite(state=ocp.args.StandardRestore(whole))
      try:
        moved = self._manager.restore(step, args=arguments)['state']
        if whole is not wanted:
          moved = placed(moved, jax.tree.map(lambda leaf: leaf.sharding, wanted))
        if bad := sorted(
          path
          for path, sum_ in fingerprint(moved).items()
          if record['fingerprint'].get(path) != sum_
        ):
          raise ValueError(f'{len(bad)} arrays have changed, e.g. {bad[0]}')
      except Exception as error:
        if 'RESOURCE_EXHAUSTED' in str(error):  # no room for it is no damage
          raise
        self._damaged(step, error)
        continue
      self._set_aside([kept for kept in self._manager.all_steps() if kept > step])
      return Restored(moved, position, record.get('base'), record.get('flight', ()))
    if self._manager.all_steps():
      raise ValueError(
        f'checkpoints: none of those in {self.folder} can be read. Begin anew with another --workdir.'
      )
    return None

  def _set_aside(self, steps: list[int]) -> None:
    """Damaged checkpoints stay for whoever wants to look at them, and no longer stand in the way of new ones.

    A bucket cannot move them: there they go.
    """
    aside = self.folder.parent / 'damaged'
    for step in steps if jax.process_index() == 0 else ():
      folder = self.folder / f'step_{step}'
      if places.is_remote(folder):
        places.remove(folder)
        continue
      aside.mkdir(exist_ok=True)
      shutil.move(folder, aside / f'step_{step}_{time.time_ns()}')
    barrier('damaged')
    if steps:
      self._manager.reload()

  def _damaged(self, step: int, error: Exception) -> None:
    text = str(error).strip().splitlines()
    reason = f'{type(error).__name__}: {text[0][:160] if text else ""}'
    self.say(f'the checkpoint of step {step} is damaged ({reason}); the one before it is tried')

  def close(self) -> None:
    self._manager.close()
