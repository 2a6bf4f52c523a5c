"""Floor 2. The tokenizer of a published model, named and not yet read: a plan of an experiment needs no network."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from opd_jax.data.tokenizers import HubTokenizer
from opd_jax.storage import hub


@dataclasses.dataclass(frozen=True)
class Published:
  """The name of a tokenizer. `tokenizer` reads it, which is when a run begins.

  Args:
    source: a folder or a hub id, which is downloaded with its model; where WEIGHTS names the student's, its name.
    stop_tokens: token strings that end a response; None takes what the model declares.
  """

  source: str | None
  stop_tokens: Sequence[str] | None = None

  @functools.cached_property
  def tokenizer(self) -> Any:
    """The `HubTokenizer` itself."""
    if self.source is None:
      raise ValueError(
        'tokenizer: nobody said of which model. Bind its source, or WEIGHTS where that names it, '
        "e.g. WEIGHTS = 'Qwen/Qwen3-8B-Base'."
      )
    return HubTokenizer(hub.folder_of(self.source), stop_tokens=self.stop_tokens)
