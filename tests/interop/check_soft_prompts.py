"""Exported soft prompts are what evaluation feeds the LLM, and the exported adapter makes them from mean encoder states.

    check_soft_prompts.py --export exported --dump dump.safetensors
"""

import argparse
import pathlib

import torch
from safetensors.torch import load_file

BOUND = 1e-5


def main():
    parser = argparse.ArgumentParser()
    for name in ("export", "dump"):
        parser.add_argument(f"--{name}", required=True, type=pathlib.Path)
    args = parser.parse_args()
    dump = load_file(args.dump)
    soft_UKL = load_file(args.export / "soft_prompts.safetensors")["soft_prompts"]
    adapter = load_file(args.export / "adapter.safetensors")
    users = (args.export / "users.txt").read_text().splitlines()
    num_questions, num_soft, width = dump["soft"].shape
    assert soft_UKL.shape == (len(users), num_soft, width), f"soft prompts are {list(soft_UKL.shape)}"
    assert soft_UKL.dtype == torch.float32 and len(set(users)) == len(users)

    made = dump["pooled"] @ adapter["up_proj.weight"].T + adapter["up_proj.bias"]
    by_adapter = (made - dump["soft"][:, 0]).abs().max().item()
    assert by_adapter <= BOUND, f"the exported adapter gives soft tokens that differ by {by_adapter:.2e}"

    whole = (dump["end"] == dump["length"]).nonzero().flatten().tolist()
    assert len(whole) >= 6, "the dump holds too few questions about whole histories"
    by_user = max((soft_UKL[dump["user"][i]] - dump["soft"][i]).abs().max().item() for i in whole)
    spread = (soft_UKL[dump["user"][whole[0]]] - soft_UKL).abs().amax(dim=(1, 2)).median().item()
    assert by_user <= BOUND, f"exported soft prompts differ from evaluation's by {by_user:.2e}"
    assert spread > 100 * BOUND, f"users' soft prompts differ by {spread:.2e} only: the comparison proves nothing"
    print(f"  soft prompts {list(soft_UKL.shape)}: largest difference {by_user:.2e} over {len(whole)} histories (users differ by {spread:.2f}); "
          f"exported adapter {by_adapter:.2e} over {num_questions} questions")


if __name__ == "__main__":
    main()
