"""Makes what the ten-minute guide begins with, where nothing can be downloaded: two model folders and questions.

python docs/examples/make_folders.py mine

mine/student and mine/teacher are folders as `transformers` writes them: Qwen2, random weights, a byte-level BPE
tokenizer with a chat template. mine/problems.jsonl has a question, a worked solution and an answer in each line.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

VOCABULARY, POSITIONS, HEADS = 300, 256, 4
WIDTHS = {'student': 64, 'teacher': 96}
LAYERS = 2
SPECIAL = '<|endoftext|>', '<|im_start|>', '<|im_end|>'
# How Qwen2 cuts a text before BPE: words with the space in front, each digit alone. transformers takes this from the
# class of the tokenizer where a config.json says qwen2, so tokenizer.json must say the same.
CUTS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
  r'|\s+(?!\S)|\s+'
)
CHAT = (
  "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
  '{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}'
)


def problem(random: np.random.Generator) -> dict[str, str]:
  """A sum of three numbers, with both steps."""
  a, b, c = (int(n) for n in random.integers(1, 10, size=3))
  solution = f'{a} + {b} = {a + b}\n{a + b} + {c} = {a + b + c}'
  return {'problem': f'{a} + {b} + {c} = ?', 'solution': solution, 'answer': str(a + b + c)}


def tokenizer(rows: list[dict[str, str]]) -> Tokenizer:
  """Byte-level BPE, as Qwen's, learnt from the questions and solutions."""
  made = Tokenizer(models.BPE())
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = decoders.ByteLevel()
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(
    vocab_size=VOCABULARY,
    special_tokens=[*SPECIAL],
    initial_alphabet=alphabet,
    show_progress=False,
  )
  made.train_from_iterator([row[key] for row in rows for key in ('problem', 'solution')], trainer)
  made.normalizer = normalizers.NFC()
  cut = pre_tokenizers.Split(Regex(CUTS), behavior='isolated')
  made.pre_tokenizer = pre_tokenizers.Sequence(
    [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
  )
  return made


def weights(width: int, vocabulary: int, seed: int) -> dict[str, np.ndarray]:
  """Random parameters under the names of Qwen2."""
  random = np.random.default_rng(seed)
  draw = lambda out, into: random.normal(0, into**-0.5, (out, into)).astype(np.float32)
  one, zero = (lambda n: np.ones(n, np.float32)), (lambda n: np.zeros(n, np.float32))
  tensors = {
    'model.embed_tokens.weight': 0.3 * draw(vocabulary, width),
    'model.norm.weight': one(width),
  }
  for number in range(LAYERS):
    layer = f'model.layers.{number}.'
    tensors |= {
      f'{layer}{name}.weight': one(width)
      for name in ('input_layernorm', 'post_attention_layernorm')
    }
    for name in ('q_proj', 'k_proj', 'v_proj'):
      tensors[f'{layer}self_attn.{name}.weight'] = draw(width, width)
      tensors[f'{layer}self_attn.{name}.bias'] = zero(width)
    tensors[f'{layer}self_attn.o_proj.weight'] = 0.3 * draw(width, width)
    tensors[f'{layer}mlp.gate_proj.weight'] = draw(2 * width, width)
    tensors[f'{layer}mlp.up_proj.weight'] = draw(2 * width, width)
    tensors[f'{layer}mlp.down_proj.weight'] = 0.3 * draw(width, 2 * width)
  return tensors


def model(folder: Path, width: int, made: Tokenizer, seed: int) -> None:
  """A folder as transformers writes it."""
  folder.mkdir(parents=True, exist_ok=True)
  size, ends = made.get_vocab_size(), made.token_to_id('<|im_end|>')
  config = {
    'architectures': ['Qwen2ForCausalLM'],
    'model_type': 'qwen2',
    'vocab_size': size,
    'hidden_size': width,
    'intermediate_size': 2 * width,
    'num_hidden_layers': LAYERS,
    'num_attention_heads': HEADS,
    'num_key_value_heads': HEADS,
    'max_position_embeddings': POSITIONS,
    'rms_norm_eps': 1e-6,
    'rope_theta': 10000.0,
    'hidden_act': 'silu',
    'tie_word_embeddings': True,
    'torch_dtype': 'float32',
    'bos_token_id': made.token_to_id('<|endoftext|>'),
    'eos_token_id': ends,
  }
  words = {
    'tokenizer_class': 'Qwen2Tokenizer',
    'eos_token': '<|im_end|>',
    'pad_token': '<|endoftext|>',
    'chat_template': CHAT,
    'model_max_length': POSITIONS,
  }
  (folder / 'config.json').write_text(json.dumps(config, indent=2))
  (folder / 'tokenizer_config.json').write_text(json.dumps(words, indent=2))
  made.save(str(folder / 'tokenizer.json'))
  save_file(weights(width, size, seed), folder / 'model.safetensors', metadata={'format': 'pt'})


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('folder', type=Path)
  parser.add_argument('--problems', type=int, default=2000)
  args = parser.parse_args()
  random = np.random.default_rng(0)
  rows = [problem(random) for _ in range(args.problems)]
  made = tokenizer(rows)
  for seed, (name, width) in enumerate(WIDTHS.items()):
    model(args.folder / name, width, made, seed)
  lines = ''.join(json.dumps(row) + '\n' for row in rows)
  (args.folder / 'problems.jsonl').write_text(lines)
  print(f'{args.folder}: student, teacher, problems.jsonl with {len(rows)} lines')


if __name__ == '__main__':
  main()
