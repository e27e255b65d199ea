"""Stand-ins for the reference's checkpoints, and whether what came back is what went in.

    check_checkpoint.py write model.safetensors epoch_1.pt --item-table NAME     names under "module.", the item table a second time
    check_checkpoint.py broken broken.pt                                         a checkpoint that holds more than tensors
    check_checkpoint.py aligned EXPORT LLM checkpoint-3                          encoder without proj2, adapter and LLM in two shards of one directory
    check_checkpoint.py same a.safetensors b.safetensors
"""

import argparse
import os

import torch
from safetensors.torch import load_file, save_file


def write(args):
    tensors = load_file(args.a)
    tensors["score_head_weight"] = tensors[f"ebc.bags.{args.item_table}.weight"]  # shared storage, as tied weights are saved
    torch.save({f"module.{name}": tensor for name, tensor in tensors.items()}, args.b)


def broken(args):
    torch.save({"proj1.weight": torch.zeros(2, 2), "epoch": 3}, args.a)


def aligned(args):
    encoder = load_file(f"{args.a}/encoder.safetensors")
    parts = {name: tensor for name, tensor in encoder.items() if not name.startswith("proj2.")}
    adapter = load_file(f"{args.a}/adapter.safetensors")
    os.mkdir(args.c)
    save_file(parts | {f"adapter.{name}": tensor for name, tensor in adapter.items()}, f"{args.c}/model-00001-of-00002.safetensors")
    save_file(load_file(f"{args.b}/model.safetensors"), f"{args.c}/model-00002-of-00002.safetensors")


def same(args):
    a, b = load_file(args.a), load_file(args.b)
    assert a.keys() == b.keys(), f"names differ: {sorted(a.keys() ^ b.keys())}"
    different = [name for name in a if a[name].dtype != b[name].dtype or not torch.equal(a[name], b[name])]
    assert a and not different, f"tensors differ: {different}"
    print(f"  {len(a)} tensors equal")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=("write", "broken", "aligned", "same"))
    parser.add_argument("a")
    parser.add_argument("b", nargs="?")
    parser.add_argument("c", nargs="?")
    parser.add_argument("--item-table")
    args = parser.parse_args()
    {"write": write, "broken": broken, "aligned": aligned, "same": same}[args.action](args)


if __name__ == "__main__":
    main()
