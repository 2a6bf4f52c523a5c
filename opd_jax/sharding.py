"""Floor 0. Where arrays lie: a mesh of devices, and rules from logical axes to mesh axes.

Parameters and activations name their axes by meaning; only a `Layout` knows about devices. A run
has several (training, sampling, teacher) and moves between them with one `jax.device_put`.

Logical axes of parameters   layers vocab embed heads kv_heads head_dim mlp experts expert_embed expert_mlp
Logical axes of activations  batch length width, and heads, kv_heads, mlp, vocab as above
Mesh axes                    data (copies)  fsdp (parameters cut by width)  tensor (cut by heads and mlp)
  where asked for            experts (rows, and whole experts)  context (columns of a row)

`embed` is the model width of a weight, `width` that of an activation: under FSDP the first is cut
and the second is not, so they need two names.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from opd_jax import meshes

MeshAxes = str | tuple[str, ...] | None
Rules = tuple[tuple[str, MeshAxes], ...]

RULES: Rules = (
  ('batch', ('data', 'fsdp')),
  ('length', None),
  ('width', None),
  ('layers', None),
  ('vocab', 'tensor'),
  ('embed', 'fsdp'),
  ('heads', 'tensor'),
  ('kv_heads', 'tensor'),
  ('head_dim', None),
  ('mlp', 'tensor'),
  ('experts', None),
  ('expert_embed', 'fsdp'),
  ('expert_mlp', 'tensor'),
)
# Mesh axes that a layout has only where it is asked for them: the logical axes that they cut, too. What lies whole on
# their devices otherwise, parameters and the optimiser's state, is cut by width over them.
MORE: dict[str, tuple[str, ...]] = {
  'experts': ('batch', 'embed', 'experts'),
  'context': ('length', 'embed', 'expert_embed'),
}


_present: Callable[[], Sequence[Any]] = jax.devices


def pretend(devices: Sequence[Any]) -> None:
  """Layouts that name no devices lie on these from here on, e.g. on chips that are not here: for plans."""
  global _present
  _present = lambda: devices


def _axes(entry: MeshAxes) -> tuple[str, ...]:
  return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """A mesh shape and the rules that map logical axes onto it.

  Args:
    shape: mesh axes and their sizes, e.g. `(('fsdp', 2), ('tensor', 4))`. One size may be -1: whatever
      devices remain.
    rules: for every logical axis the mesh axis (or axes, or None) that cuts it.
    devices: the devices of the mesh; None takes the first that fit from `jax.devices()`.
    first, count: a range of that list; the sizes must use all of it. Without a count they take what they need.
  """

  shape: tuple[tuple[str, int], ...]
  rules: Rules = RULES
  devices: tuple[Any, ...] | None = None
  first: int = 0
  count: int | None = None

  def __post_init__(self):
    names = [name for name, _ in self.shape]
    if sum(size == -1 for _, size in self.shape) > 1:
      raise ValueError(f'Layout: at most one mesh axis may be -1, got {dict(self.shape)}.')
    for name, size in self.shape:
      if not isinstance(size, int) or (size < 1 and size != -1):
        raise ValueError(
          f'Layout: mesh axis {name!r} has size {size!r}; give a count, or -1 for the rest.'
        )
    for logical, entry in self.rules:
      for axis in _axes(entry):
        if axis not in names:
          raise ValueError(
            f'Layout: the rule {logical!r} -> {axis!r} names a mesh axis that does not exist. '
            f'The mesh has {names}; add {axis!r} with size 1 or change the rule.'
          )
    for name, least in (('first', 0), ('count', 1)):
      if (value := getattr(self, name)) is not None and (
        not isinstance(value, int) or value < least
      ):
        raise ValueError(f'Layout: {name} is a whole number from {least} on, got {value!r}.')

  @functools.cached_property
  def mesh(self) -> Mesh:
    """The devices, arranged. Axes are Auto: the compiler places collectives, tests count them."""
    devices = self._range()
    fixed = math.prod(size for _, size in self.shape if size != -1)
    sizes = [size if size != -1 else max(len(devices) // fixed, 1) for _, size in self.shape]
    wanted, shape = math.prod(sizes), ' x '.join(f'{name}={size}' for name, size in self.shape)
    if wanted > len(devices):
      here = 'are here' if self.count is None else f'are in the range from number {self.first} on'
      raise ValueError(
        f'Layout: {shape} needs {wanted} devices, {len(devices)} {devices[0].platform} device(s) {here}. Use a smaller '
        f'layout; on a CPU, JAX_NUM_CPU_DEVICES={self.first + wanted} in the environment simulates them.'
      )
    if self.count is not None and wanted != self.count:
      raise ValueError(
        f'Layout: {shape} uses {wanted} of the {self.count} devices from number {self.first} on. Choose sizes with the '
        f'product {self.count}, or -1 for one of them.'
      )
    return meshes.arranged(
      {name: n for (name, _), n in zip(self.shape, sizes, strict=True)}, devices
    )

  def _range(self) -> list[Any]:
    """The devices to choose from."""
    devices = list(_present() if self.devices is None else self.devices)
    end = self.first + (1 if self.count is None else self.count)
    if end > len(devices):
      raise ValueError(
        f'Layout: the range first={self.first}, count={self.count} does not exist: {devices[0].platform} devices 0 to '
        f'{len(devices) - 1} are here. Choose another; on a CPU, JAX_NUM_CPU_DEVICES={end} simulates them.'
      )
    return devices[self.first : None if self.count is None else end]

  def apart(self, other: 'Layout') -> bool:
    """Whether two layouts share no device."""
    return not {*self.mesh.devices.flat} & {*other.mesh.devices.flat}

  def __str__(self) -> str:
    """What it puts where, e.g. `data=1 x fsdp=4 x tensor=1 on cpu devices 4 to 7`."""
    devices = [*_present()] if self.devices is None else [*self.devices]
    mesh, end = self.mesh, self.first + self.mesh.size - 1
    which = f'devices {self.first} to {end}' if end > self.first else f'device {self.first}'
    shape = ' x '.join(f'{name}={size}' for name, size in mesh.shape.items())
    return f'{shape} on {devices[0].platform} {which}'

  @property
  def is_single(self) -> bool:
    return self.mesh.size == 1

  def mesh_axes(self, logical: str) -> tuple[str, ...]:
    """The mesh axes that cut one logical axis; () when none does."""
    rules = dict(self.rules)
    if logical not in rules:
      raise ValueError(
        f'Layout: no rule for the logical axis {logical!r}; the rules know {sorted(rules)}.'
      )
    return _axes(rules[logical])

  def size(self, logical: str) -> int:
    """Into how many pieces this layout cuts a logical axis."""
    return math.prod(self.mesh.shape[axis] for axis in self.mesh_axes(logical))

  def spec(self, *names: str | None) -> PartitionSpec:
    """Logical names, one per array axis (None: never cut) -> the PartitionSpec."""
    owner: dict[str, str] = {}
    entries = []
    for name in names:
      axes = () if name is None else self.mesh_axes(name)
      for axis in axes:
        if axis in owner:
          raise ValueError(
            f'Layout: the logical axes {owner[axis]!r} and {name!r} of {names} are both mapped to the mesh '
            f'axis {axis!r}. Map one of them elsewhere, or to None.'
          )
        owner[axis] = str(name)
      entries.append(axes if len(axes) > 1 else axes[0] if axes else None)
    return PartitionSpec(*entries)

  def sharding(self, *names: str | None) -> NamedSharding:
    """The same on this mesh, in the one spelling that the compiler also gives its outputs.

    P('fsdp', None) on an axis of size 1 lies as P() does, but `jit` would compile once for each.
    """
    entries: list[MeshAxes] = []
    for entry in self.spec(*names):
      axes = tuple(axis for axis in _axes(entry) if self.mesh.shape[axis] > 1)
      entries.append(axes if len(axes) > 1 else axes[0] if axes else None)
    while entries and entries[-1] is None:
      entries.pop()
    return NamedSharding(self.mesh, PartitionSpec(*entries))

  def fitted(
    self, shape: Sequence[int], names: Sequence[str | None], *, what: str
  ) -> NamedSharding:
    """The sharding of an array that must divide evenly; `what` names it in the error."""
    for size, name in zip(shape, names, strict=True):
      pieces = 1 if name is None else self.size(name)
      if size % pieces:
        raise ValueError(
          f'Layout: {what} has {size} along {name!r}, which {pieces} devices (mesh axes '
          f'{self.mesh_axes(str(name))}) cannot share evenly. Use a layout whose size divides {size}, or '
          f'replicate=({name!r},).'
        )
    return self.sharding(*names)

  def constrain(self, x: jax.Array, *names: str | None) -> jax.Array:
    """Pins an intermediate array to the layout; the identity on one device."""
    return x if self.is_single else jax.lax.with_sharding_constraint(x, self.sharding(*names))


def mesh_layout(
  *,
  data: int = 1,
  fsdp: int = 1,
  tensor: int = 1,
  experts: int = 1,
  context: int = 1,
  replicate: Sequence[str] = (),
  devices: tuple[Any, ...] | None = None,
  first: int = 0,
  count: int | None = None,
) -> Layout:
  """A layout with the house rules. The default is one device; -1 means all that remain.

  Args:
    data, fsdp, tensor: sizes of the mesh axes.
    experts: devices that share the experts of a mixture: each holds some of them whole.
    context: devices that share a row: each holds some of its columns. For programs that learn and score, not for
      writing.
    replicate: logical axes that are not cut after all, e.g. `('kv_heads',)` where a model has fewer
      key-value heads than `tensor` has devices.
    devices: the devices to use; None takes the first that fit.
    first, count: a range of them, by number, e.g. for a judge on devices of its own; the sizes must use all of it.

  >>> tuple(mesh_layout(tensor=1).spec('vocab', 'embed'))
  ('tensor', 'fsdp')
  """
  axes = [name for name, _ in RULES]
  if unknown := [name for name in replicate if name not in axes]:
    raise ValueError(f'mesh_layout: replicate names unknown logical axes {unknown}; known: {axes}.')
  more = {axis: size for axis, size in (('experts', experts), ('context', context)) if size != 1}
  rules = tuple(
    (name, None if name in replicate else _cut_more(name, entry, more)) for name, entry in RULES
  )
  shape = (('data', data), ('fsdp', fsdp), *more.items(), ('tensor', tensor))
  return Layout(shape=shape, rules=rules, devices=devices, first=first, count=count)


def _cut_more(name: str, entry: MeshAxes, axes: Iterable[str]) -> MeshAxes:
  whole = _axes(entry) + tuple(axis for axis in axes if name in MORE[axis])
  return whole if len(whole) > 1 else whole[0] if whole else None
