"""Floor 0. Where arrays lie: a mesh of devices, and rules from logical axes to mesh axes.

Parameters and activations name their axes by meaning; only a `Layout` knows about devices. A run
has several (training, sampling, teacher) and moves between them with one `jax.device_put`.

Logical axes of parameters   layers vocab embed heads kv_heads head_dim mlp experts expert_mlp
Logical axes of activations  batch length width, and heads, kv_heads, mlp, vocab as above
Mesh axes                    data (copies)  fsdp (parameters cut by width)  tensor (cut by heads and mlp)

`embed` is the model width of a weight, `width` that of an activation: under FSDP the first is cut
and the second is not, so they need two names.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

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
  ('expert_mlp', 'tensor'),
)


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
  """

  shape: tuple[tuple[str, int], ...]
  rules: Rules = RULES
  devices: tuple[Any, ...] | None = None

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

  @functools.cached_property
  def mesh(self) -> Mesh:
    """The devices, arranged. Axes are Auto: the compiler places collectives, tests count them."""
    devices = list(_present() if self.devices is None else self.devices)
    fixed = math.prod(size for _, size in self.shape if size != -1)
    sizes = [size if size != -1 else max(len(devices) // fixed, 1) for _, size in self.shape]
    wanted = math.prod(sizes)
    if wanted > len(devices):
      raise ValueError(
        f'Layout: {" x ".join(f"{name}={size}" for name, size in self.shape)} needs {wanted} devices, '
        f'{len(devices)} {devices[0].platform} device(s) are here. Use a smaller layout; on a CPU, '
        f'JAX_NUM_CPU_DEVICES={wanted} in the environment simulates them.'
      )
    return _arranged({name: n for (name, _), n in zip(self.shape, sizes, strict=True)}, devices)

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


def _arranged(sizes: dict[str, int], devices: list[Any]) -> Mesh:
  """A mesh on the first devices. Where whole axes of a torus do not fit, its axes are split: slower, but a mesh."""
  names, shape = tuple(sizes), tuple(sizes.values())
  used = devices[: math.prod(shape)]
  # make_mesh would choose Explicit axes by itself, which turns a gather on a cut axis into a type error.
  auto = (AxisType.Auto,) * len(names)
  slices = len({getattr(device, 'slice_index', 0) for device in used})
  if slices > 1:
    return Mesh(_over_slices(sizes, used, slices), names, axis_types=auto)
  try:
    return jax.make_mesh(shape, names, axis_types=auto, devices=used)
  except NotImplementedError:
    pass  # whole axes do not fit
  except AssertionError as error:
    raise ValueError(_no_mesh(sizes, devices)) from error
  try:
    array = mesh_utils.create_device_mesh(shape, used, allow_split_physical_axes=True)
  except (NotImplementedError, AssertionError, ValueError) as error:
    raise ValueError(_no_mesh(sizes, devices)) from error
  return Mesh(array, names, axis_types=auto)


def _over_slices(sizes: dict[str, int], devices: list[Any], slices: int) -> np.ndarray:
  """Devices of several slices, whose network is slow: the outer axes are cut by slices, `data` first."""
  across, left = [], slices
  for size in sizes.values():
    across.append(math.gcd(size, left))
    left //= across[-1]
  within = [size // share for size, share in zip(sizes.values(), across, strict=True)]
  wanted = ' x '.join(f'{name}={size}' for name, size in sizes.items())
  if left > 1:
    raise ValueError(
      f'Layout: {wanted} cannot be laid over {slices} slices. Choose a multiple of {slices} for the first axis, '
      f'{next(iter(sizes))}.'
    )
  try:
    return mesh_utils.create_hybrid_device_mesh(
      within, across, devices, allow_split_physical_axes=True
    )
  except (NotImplementedError, AssertionError, ValueError) as error:
    raise ValueError(
      f'Layout: {wanted} cannot be laid over {slices} slices of {len(devices) // slices} devices: {error}'
    ) from error


def _no_mesh(sizes: dict[str, int], devices: list[Any]) -> str:
  """Why sizes do not fit the devices, and which do."""
  count = math.prod(sizes.values())
  wanted = ' x '.join(f'{name}={size}' for name, size in sizes.items())
  whole, used = _topology(devices), _topology(devices[:count])
  shown = f', which form {" x ".join(map(str, whole))}' if whole else ''
  start = f'Layout: {wanted} cannot be laid over the first {count} of {len(devices)} devices{shown}'
  if used is not None:
    subsets = itertools.product((False, True), repeat=len(used))
    fitting = sorted({math.prod(itertools.compress(used, subset)) for subset in subsets})
    return f'{start}. Choose each size among {fitting}, with the product {count}.'
  blocks = [n for n in range(1, len(devices) + 1) if _topology(devices[:n]) is not None]
  advice = f'whose product is one of {blocks}' if blocks else f'whose product is {len(devices)}'
  return f'{start}: these are no whole block. Choose sizes {advice}, or name the devices.'


def _topology(devices: list[Any]) -> tuple[int, ...] | None:
  """The sides of the block that devices fill, the cores of a chip last; None where they fill none or do not say."""
  if not all(hasattr(device, 'coords') for device in devices):
    return None
  places = [(*device.coords, device.core_on_chip) for device in devices]
  sides = tuple(max(axis) - min(axis) + 1 for axis in zip(*places, strict=True))
  return tuple(side for side in sides if side > 1) if math.prod(sides) == len(devices) else None


def mesh_layout(
  *,
  data: int = 1,
  fsdp: int = 1,
  tensor: int = 1,
  replicate: Sequence[str] = (),
  devices: tuple[Any, ...] | None = None,
) -> Layout:
  """A layout with the house rules. The default is one device; -1 means all that remain.

  Args:
    data, fsdp, tensor: sizes of the mesh axes.
    replicate: logical axes that are not cut after all, e.g. `('kv_heads',)` where a model has fewer
      key-value heads than `tensor` has devices.
    devices: the devices to use; None takes the first that fit.

  >>> tuple(mesh_layout(tensor=1).spec('vocab', 'embed'))
  ('tensor', 'fsdp')
  """
  axes = [name for name, _ in RULES]
  if unknown := [name for name in replicate if name not in axes]:
    raise ValueError(f'mesh_layout: replicate names unknown logical axes {unknown}; known: {axes}.')
  rules = tuple((name, None if name in replicate else entry) for name, entry in RULES)
  return Layout(
    shape=(('data', data), ('fsdp', fsdp), ('tensor', tensor)), rules=rules, devices=devices
  )
