"""Stand-ins for the reference's `epoch_N.pt`, and whether what came back is what went in.

    check_checkpoint.py write model.safetensors epoch_1.pt --item-table NAME     names under "module.", the item table a second time
    check_checkpoint.py broken broken.pt                                         a checkpoint that holds more than tensors
    check_checkpoint.py same a.safetensors b.safetensors
"""

import argparse

import torch
from safetensors.torch import load_file


def write(args):
    tensors = load_file(args.a)
    tensors["score_head_weight"] = tensors[f"ebc.bags.{args.item_table}.weight"]  # shared storage, as tied weights are saved
    torch.save({f"module.{name}": tensor for name, tensor in tensors.items()}, args.b)


def broken(args):
    torch.save({"proj1.weight": torch.zeros(2, 2), "epoch": 3}, args.a)


def same(args):
    a, b = load_file(args.a), load_file(args.b)
    assert a.keys() == b.keys(), f"names differ: {sorted(a.keys() ^ b.keys())}"
    different = [name for name in a if a[name].dtype != b[name].dtype or not torch.equal(a[name], b[name])]
    assert a and not different, f"tensors differ: {different}"
    print(f"  {len(a)} tensors equal")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("action", choices=("write", "broken", "same"))
    parser.add_argument("a")
    parser.add_argument("b", nargs="?")
    parser.add_argument("--item-table")
    args = parser.parse_args()
    {"write": write, "broken": broken, "same": same}[args.action](args)


if __name__ == "__main__":
    main()
