"""Floor 3. What a method wants to know of gradients before the next batch is written."""

from opd_jax.static import static


@static
class Probe:
  """How well the first tokens of responses stand for whole ones, every so many steps.

  The metrics then hold `probe/cosine_<L>`, the cosine of the gradient of the first L tokens with that of all of them,
  and `probe/window`, the smallest L whose cosine is at least `agreement`, the largest where none is.

  Args:
    windows: L, rising; each costs a forward and a backward pass.
    agreement: a cosine.
    every: steps between two probes; the first step is one.
  """

  windows: tuple[int, ...]
  agreement: float
  every: int

  def __post_init__(self):
    object.__setattr__(self, 'windows', tuple(self.windows))
    rising = list(self.windows) == sorted(set(self.windows)) and min(self.windows, default=0) >= 1
    if not rising or not -1 <= self.agreement <= 1 or self.every < 1:
      raise ValueError(
        'Probe: windows must rise from 1 or more, agreement is a cosine and every at least 1; got '
        f'{self.windows}, {self.agreement}, {self.every}.'
      )
