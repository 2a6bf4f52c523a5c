"""Floor 5. Which models answered behind the servers of a run: kept in its folder, and compared when it is resumed."""

import dataclasses
import json
from collections.abc import Callable

from opd_jax.judges.introduction import Introduction
from opd_jax.judges.reading import served_of
from opd_jax.judges.remote import ServedJudge
from opd_jax.processes import first_does
from opd_jax.storage.places import Place, write_whole
from opd_jax.training.runtime import StageRuntime

FILE = 'served.json'


def remember(runtime: StageRuntime, workdir: Place, say: Callable[[str], None]) -> None:
  """Notes who answers, or refuses another model than the one that was noted."""
  found = _served(runtime)
  if not found:
    return

  def compared() -> None:
    file = workdir / FILE
    before = json.loads(file.read_text()) if file.is_file() else {}
    for name, judge in found.items():
      if name not in before:
        continue
      judge.check_same(judge.known, before=Introduction.of(before[name]))
      say(f'{name}: the same model answers as when the run began')
    new = {name: dataclasses.asdict(judge.known) for name, judge in found.items()}
    write_whole(file, json.dumps({**new, **before}))

  first_does(compared)


def _served(runtime: StageRuntime) -> dict[str, ServedJudge]:
  """The served judges of a stage, and the teacher that only writes, by stage and name."""
  found = {}
  for judge in runtime.judges.values():
    found |= {f'{runtime.stage.name}/{remote.name}': remote for remote in served_of(judge)}
  if runtime.author is not None:
    found[f'{runtime.stage.name}/teacher'] = runtime.author
  return found
