"""Floor 5. The student of a run as a folder that every command reads, with its tokenizer."""

from pathlib import Path

from opd_jax.data.tokenizers import HubTokenizer
from opd_jax.storage import orbax_folder
from opd_jax.storage.places import Place
from opd_jax.training.experiment import Experiment
from opd_jax.training.state import State, whole_student


def companions_of(experiment: Experiment) -> Path | None:
  """The folder whose tokenizer files travel with the student; None where the tokenizer has no files."""
  tokenizer = experiment.known_tokenizer
  return tokenizer.folder if isinstance(tokenizer, HubTokenizer) else None


def save(experiment: Experiment, state: State, folder: Place) -> None:
  """Writes it, as a model without adapters."""
  orbax_folder.save(
    folder,
    experiment.model,
    whole_student(experiment, state),
    strings=experiment.known_tokenizer.strings(),
    companions=companions_of(experiment),
  )
