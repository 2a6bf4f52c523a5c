"""Floor 0. Devices arranged as a mesh: on one torus, over several slices, and why sizes do not fit."""

import itertools
import math
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh


def arranged(sizes: dict[str, int], devices: list[Any]) -> Mesh:
  """A mesh on the first devices. Where whole axes of a torus do not fit, its axes are split: slower, but a mesh."""
  names, shape = tuple(sizes), tuple(sizes.values())
  used = devices[: math.prod(shape)]
  # make_mesh would choose Explicit axes by itself, which turns a gather on a cut axis into a type error.
  auto = (AxisType.Auto,) * len(names)
  slices = len({getattr(device, 'slice_index', 0) for device in used})
  if slices > 1:
    return Mesh(over_slices(sizes, used, slices), names, axis_types=auto)
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


def over_slices(sizes: dict[str, int], devices: list[Any], slices: int) -> np.ndarray:
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
