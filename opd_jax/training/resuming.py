"""Floor 5. What may change between the calls of a run: how it is observed, and with --extend how long it is.

Configurations are compared as texts, binding by binding. Everything that numbers depend on must be the same.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from opd_jax.storage.places import Place

ROOT = 'experiment.Experiment'
OBSERVED = tuple(
  f'{ROOT}.{field}'
  for field in (
    *('checkpoint_every', 'checkpoints_kept', 'evaluations', 'geometry', 'rollouts'),
    *('samples_every', 'wandb'),
  )
)
# How a served judge is reached; that the same model answers is another check (`served_models`).
REACHED = re.compile(r'(?:^|[/.])served\.(?:url|concurrency|timeout|patience|key_of)$')
STEPS = 'experiment.Stage.steps'
BINDING = re.compile(r'^([\w./-]+) = ?(.*)$')
REFERENCE = re.compile(r'@((?:[\w-]+/)*)([\w.]+)|%([\w.]+)')
Bindings = Mapping[str, str]  # value by name, e.g. heldout/sums.sums.split


class Plan(NamedTuple):
  """What a call asks for, and a checkpoint remembers: the configuration, and the steps of every stage."""

  config: str
  steps: Sequence[int]


def check(
  saved: Plan, asked: Plan, *, folder: Place, extend: bool, say: Callable[[str], None]
) -> None:
  """Refuses to go on with another experiment, with the difference; says which changes are taken over."""
  before, now = bindings_of(saved.config), bindings_of(asked.config)
  free = observed(before) & observed(now)
  changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
  longer = set()
  if extend:
    longer = _lengths(now) & {*changed}
    _check_length(saved.steps, asked.steps, folder)
  if refused := [name for name in changed if name not in free | longer]:
    raise ValueError(_refusal(before, now, refused, _lengths(now), folder))
  if observing := [name for name in changed if name in free]:
    say(f'observed in another way than before: {", ".join(map(_short, observing))}')
  if longer:
    _say_longer(now, longer, saved.steps[-1], asked.steps[-1], say)


def bindings_of(config: str) -> dict[str, str]:
  """The bindings of a configuration, without imports and comments."""
  found, name = {}, None
  for line in config.splitlines():
    if line.startswith(('#', 'from ', 'import ')) or not line.strip():
      continue
    if binding := BINDING.match(line):
      name = binding[1]
      found[name] = binding[2].removesuffix('\\')
    elif name is not None:  # a value goes on
      found[name] += ' ' + line.strip()
  return found


def observed(bindings: Bindings) -> set[str]:
  """Bindings that only observation depends on; none of evaluations where a judge or a number follows what they find.

  And how servers are reached.
  """
  servers = [name for name in bindings if REACHED.search(name)]
  rest = {name: value for name, value in bindings.items() if name not in servers}
  matter = _reached(rest, [x for x in bindings if _owner(x) == ROOT and x not in OBSERVED])
  follows = any('eval/' in bindings[name] for name in matter)
  roots = [name for name in OBSERVED if not (follows and name == f'{ROOT}.evaluations')]
  roots += servers
  return {*roots} | _reached(bindings, [name for name in roots if name in bindings]) - matter


def _reached(bindings: Bindings, names: Iterable[str]) -> set[str]:
  """These bindings and those of everything that they refer to."""
  reached, waiting = set(), [*names]
  while waiting:
    name = waiting.pop()
    if name not in reached:
      reached.add(name)
      waiting += _referred(bindings, name)
  return reached


def _referred(bindings: Bindings, name: str) -> list[str]:
  """Macros that a binding names, and bindings of the functions that it calls, in its own scope or theirs."""
  found: list[str] = []
  macros = {each for each in bindings if '.' not in each}
  scope = {*_owner(name).split('/')[:-1]}
  for scopes, function, macro in REFERENCE.findall(bindings[name]):
    if macro:
      found += [macro] * (macro in bindings)
      continue
    own = {*scopes.split('/')} - {''}
    for each in bindings:
      *around, called = _owner(each).split('/')
      if called == function and own <= {*around} <= macros | scope | own:
        found.append(each)
  return found


def _owner(name: str) -> str:
  """The function of a binding, with its scopes; '' for a macro."""
  return name.rpartition('.')[0]


def _short(name: str) -> str:
  return name.removeprefix(f'{ROOT}.')


# --- longer -----------------------------------------------------------------------------------------


def _lengths(bindings: Bindings) -> set[str]:
  """Bindings that say how long stages are."""
  return _reached(bindings, [name for name in bindings if name.endswith(STEPS)])


def _check_length(saved: Sequence[int], asked: Sequence[int], folder: Place) -> None:
  if len(saved) != len(asked) or [*saved[:-1]] != [*asked[:-1]]:
    raise ValueError(
      f'--extend: only the last stage can be longer. The stages of {folder} have {[*saved]} steps, and {[*asked]} are '
      'asked for. Bind the steps of the last stage alone, e.g. with its scope.'
    )
  if asked[-1] <= saved[-1]:
    raise ValueError(
      f'--extend: the last stage of {folder} has {saved[-1]} steps, {asked[-1]} are asked for. Ask for more, e.g. '
      f"--gin_bindings 'STEPS = {2 * saved[-1]}'."
    )


def _say_longer(
  bindings: Bindings, longer: set[str], before: int, now: int, say: Callable[[str], None]
) -> None:
  say(f'extended: the last stage has {now} steps instead of {before}; its optimiser goes on')
  macros = {name for name in longer if '.' not in name}
  also = [
    name
    for name, value in bindings.items()
    if not name.endswith(STEPS) and macros & {*re.findall(r'%([\w.]+)', value)}
  ]
  if also:
    say(
      f'warning: {", ".join(also)} depend on {", ".join(sorted(macros))}, too: from here on they are those of {now} '
      'steps, so the run is not the one that had been as long from the beginning (a rate that had fallen rises again)'
    )


def _refusal(
  before: Bindings, now: Bindings, refused: Sequence[str], lengths: set[str], folder: Place
) -> str:
  shown = lambda bindings: [f'{name} = {bindings[name]}' for name in refused if name in bindings]
  diff = difflib.unified_diff(shown(before), shown(now), 'saved', 'asked for', lineterm='', n=0)
  advice = 'Resume with the saved one, or choose another --workdir.'
  if {*refused} <= lengths:
    advice += ' To lengthen the last stage, add --extend.'
  return (
    f'checkpoints: {folder} belongs to another configuration:\n' + '\n'.join(diff) + f'\n{advice}'
  )
