"""Floor 2. Finds a published model: a local folder, or a download from the hub. No other file of storage/ downloads."""

from pathlib import Path

from opd_jax.storage import atomic_folder, places


def folder_of(source: str | Path) -> Path:
  """Returns a local folder as it is, a folder of a bucket as a copy of it; downloads a hub id unless the hub's cache
  has it. Weights must be safetensors."""
  if '://' in str(source):
    return places.here(str(source))
  path = Path(source).expanduser()
  if path.is_dir():
    return path
  if path.exists() or str(source).count('/') != 1 or str(source).startswith(('.', '/', '~')):
    raise ValueError(
      f'hub: {source} is not a folder. Give the folder of a model, or a hub id such as Qwen/Qwen3-0.6B.'
    )
  import huggingface_hub  # slow to import

  try:
    patterns = ['*.safetensors', '*.json', *atomic_folder.COMPANIONS]
    folder = Path(huggingface_hub.snapshot_download(str(source), allow_patterns=patterns))
    if not any(folder.glob('*.safetensors')):
      held = some_of(sorted(huggingface_hub.list_repo_files(str(source))))
      raise ValueError(
        f'it holds no safetensors, but {held}; a pickle can run code and is never opened'
      )
    return folder
  except Exception as error:  # the client raises a dozen types; all mean "cannot be had"
    raise ValueError(
      f'hub: {source} is neither a folder here nor a model that the hub would give ({type(error).__name__}: '
      f'{str(error).splitlines()[0] if str(error) else ""}). Check the name, the network and your access token.'
    ) from error


def some_of(items: list[str], max_items: int = 12) -> str:
  rest = f' and {len(items) - max_items} more' if len(items) > max_items else ''
  return ', '.join(items[:max_items]) + rest
