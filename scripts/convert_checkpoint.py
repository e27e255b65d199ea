#!/usr/bin/env python3
"""Turns a checkpoint of the reference implementation into safetensors for `uqa import-checkpoint`: `epoch_N.pt`, a state_dict, or `checkpoint-N/`, the
Hugging Face directory of an aligned model, which holds encoder, adapter and LLM.

    scripts/convert_checkpoint.py epoch_3.pt weights.safetensors
    scripts/convert_checkpoint.py --list epoch_3.pt                               names, types and shapes
    scripts/convert_checkpoint.py checkpoint-9 adapter.safetensors --prefix adapter.   one part of a larger model, its prefix taken off
    scripts/convert_checkpoint.py checkpoint-9 llm/model.safetensors --only model. lm_head.   parts whose names stay; config and tokenizer files are copied by hand

Needs Python with torch and safetensors (`scripts/setup.sh --interop` makes .venv-interop with both). A .pt is read with
weights_only=True: nothing in it is run. Exit codes: 0 done, 2 wrong call, 3 wrong file.
"""

import argparse
import os
import sys

import torch
from safetensors.torch import load_file, save_file

DDP_PREFIX = "module."


class WrongFile(Exception):
    """The message is for the user."""


def load_state_dict(path):
    """-> {name: tensor}. A dict that holds the state_dict under one of the usual keys is unwrapped; shards of a directory are joined."""
    if os.path.isdir(path):
        shards = sorted(name for name in os.listdir(path) if name.endswith(".safetensors"))
        if not shards:
            raise WrongFile(f"{path}: holds no .safetensors file, must be a directory as save_pretrained writes it")
        tensors = {}
        for shard in shards:
            for name, tensor in load_file(os.path.join(path, shard)).items():
                if name in tensors:
                    raise WrongFile(f"{path}: tensor {name} is in two files; keep the shards of one checkpoint")
                tensors[name] = tensor
        return tensors
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler has many, and all mean the same to the user
        raise WrongFile(f"{path}: not a checkpoint that can be read with weights_only=True: {str(error).splitlines()[0]}") from error
    if isinstance(loaded, dict):
        for key in ("state_dict", "model_state_dict", "model"):
            if isinstance(loaded.get(key), dict):
                print(f"{path}: the state_dict is under '{key}'")
                loaded = loaded[key]
                break
    if not isinstance(loaded, dict) or not loaded:
        raise WrongFile(f"{path}: holds {type(loaded).__name__}, must be a state_dict (tensors by name)")
    for name, tensor in loaded.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise WrongFile(f"{path}: entry {name!r} is {type(tensor).__name__}, must be a tensor; save model.state_dict() alone")
    return dict(loaded)


def without_prefix(tensors, prefix, path):
    kept = {name[len(prefix):]: tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    if not kept:
        raise WrongFile(f"{path}: no tensor begins with '{prefix}'; see --list")
    return kept


def main():
    parser = argparse.ArgumentParser(description=" ".join(__doc__.splitlines()[:2]), epilog="\n".join(__doc__.splitlines()[3:]),
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="epoch_N.pt or checkpoint-N/")
    parser.add_argument("output", nargs="?", help="safetensors file to write")
    parser.add_argument("--prefix", default="", help="keep only names that begin with this, and take it off")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME.", help="keep only names that begin with one of these, as they are")
    parser.add_argument("--list", action="store_true", help="print names, types and shapes, write nothing")
    args = parser.parse_args()
    if args.list == (args.output is not None):
        parser.error("give an output file, or --list without one")
    try:
        tensors = load_state_dict(args.checkpoint)
        if all(name.startswith(DDP_PREFIX) for name in tensors):
            tensors = without_prefix(tensors, DDP_PREFIX, args.checkpoint)
        total = len(tensors)
        if args.only:
            kept = {name: tensor for name, tensor in tensors.items() if name.startswith(tuple(args.only))}
            if not kept:
                raise WrongFile(f"{args.checkpoint}: no tensor begins with {' or '.join(args.only)}; see --list")
            tensors = kept
        if args.prefix:
            tensors = without_prefix(tensors, args.prefix, args.checkpoint)
    except WrongFile as error:
        print(f"convert_checkpoint.py: {error}", file=sys.stderr)
        return 3
    if args.list:
        for name, tensor in tensors.items():
            print(f"{name}  {str(tensor.dtype).removeprefix('torch.')}  {list(tensor.shape)}")
        return 0
    # clone(): tied tensors share memory, which safetensors refuses
    part = args.output + ".tmp"
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}, part, metadata={"format": "pt"})
    os.replace(part, args.output)
    left = f", {total - len(tensors)} others left out" if total > len(tensors) else ""
    print(f"{args.output}: {len(tensors)} tensors, {sum(tensor.numel() for tensor in tensors.values())} values{left}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
