"""An exported LLM under stock transformers: logits, greedy tokens, and the scores that `uqa evaluate` wrote.

    check_llm.py --export exported --dump dump.safetensors --base LLM --questions questions --predictions eval/predictions.jsonl
"""

import argparse
import json
import pathlib

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

LOGITS_BOUND = 1e-4
TUNING_AT_LEAST = 1e-2  # the base model's logits must differ by more, else the export proves nothing


def load(directory):
    # Only what lies in the directory: no download, no code of its own.
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True, trust_remote_code=False)
    model.generation_config.eos_token_id = None  # uqa's greedy tokens were drawn without stopping
    return model.eval()


def chat_ids(tokenizer, question):
    text = tokenizer.apply_chat_template([{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True)
    return tokenizer.encode(text, add_special_tokens=False)


def rows(model, soft, ids):
    return torch.cat([soft, model.get_input_embeddings()(torch.tensor(ids))]).unsqueeze(0)


def check_logits(model, base, tokenizer, dump, questions):
    worst, tuning, largest, num_tokens = 0.0, 0.0, 0.0, 0
    for i in dump["logits_of"].tolist():
        ids = dump[f"{i}.ids"].tolist()
        if i < len(questions):
            assert ids == chat_ids(tokenizer, questions[i]["text"]), f"question {i}: the exported tokenizer gives other ids"
        expected = dump[f"{i}.logits"]
        x = rows(model, dump["soft"][i], ids)
        worst = max(worst, (model(inputs_embeds=x).logits[0] - expected).abs().max().item())
        largest = max(largest, expected.abs().max().item())
        tuning = max(tuning, (base(inputs_embeds=rows(base, dump["soft"][i], ids)).logits[0] - expected).abs().max().item())
        greedy = dump[f"{i}.greedy"].tolist()
        got = model.generate(inputs_embeds=x, attention_mask=torch.ones(x.shape[:2], dtype=torch.long), max_new_tokens=len(greedy), do_sample=False)[0].tolist()
        assert got == greedy, f"question {i}: greedy tokens {got}, uqa has {greedy}"
        num_tokens += len(greedy)
    assert num_tokens > 0 and largest > 1, "the dump holds nothing to compare"
    assert worst <= LOGITS_BOUND, f"logits differ by {worst:.2e}, bound {LOGITS_BOUND:.0e}"
    assert tuning > TUNING_AT_LEAST, f"the base model's logits differ by {tuning:.2e} only: the run changed nothing"
    print(f"  logits: largest difference {worst:.2e} (largest logit {largest:.1f}, base model differs by {tuning:.2f}); {num_tokens} greedy tokens equal")


def check_predictions(model, tokenizer, dump, questions, predictions):
    letters = [tokenizer.encode(letter, add_special_tokens=False)[0] for letter in "ABCD"]
    worst_letter = worst_text = 0.0
    assert len(predictions) == len(questions) > 0
    for i, (question, prediction) in enumerate(zip(questions, predictions)):
        assert question["id"] == prediction["id"]
        ids = chat_ids(tokenizer, question["text"])
        assert len(ids) + dump["soft"].shape[1] == prediction["input_tokens"], f"question {i}: another number of input tokens"
        logits = model(inputs_embeds=rows(model, dump["soft"][i], ids)).logits[0, -1]
        greedy = tokenizer.decode([logits.argmax().item()], skip_special_tokens=True)
        assert greedy == prediction["prediction"], f"question {i}: prediction {greedy!r}, uqa has {prediction['prediction']!r}"
        letter_nats = logits[letters].log_softmax(0)
        worst_letter = max(worst_letter, (letter_nats - torch.tensor(prediction["letter_nats"])).abs().max().item())
        for option, nats in zip(question["options"], prediction["text_nats"]):
            words = tokenizer.encode(option, add_special_tokens=False)
            log_probs = model(inputs_embeds=rows(model, dump["soft"][i], ids + words)).logits[0].log_softmax(-1)
            mean = sum(log_probs[-len(words) - 1 + k, word].item() for k, word in enumerate(words)) / len(words)
            worst_text = max(worst_text, abs(mean - nats))
    assert max(worst_letter, worst_text) <= LOGITS_BOUND, f"scores differ by {worst_letter:.2e} (letter), {worst_text:.2e} (text)"
    print(f"  predictions: {len(predictions)} first tokens equal; largest difference letter {worst_letter:.2e}, option words {worst_text:.2e} nats")


@torch.no_grad()
def main():
    parser = argparse.ArgumentParser()
    for name in ("export", "dump", "base", "questions", "predictions"):
        parser.add_argument(f"--{name}", required=True, type=pathlib.Path)
    args = parser.parse_args()
    read_lines = lambda path: [json.loads(line) for line in path.read_text().splitlines()]
    directory = args.export / "llm"
    model, base, tokenizer = load(directory), load(args.base), AutoTokenizer.from_pretrained(directory, local_files_only=True)
    dump, questions = load_file(args.dump), read_lines(args.questions / "test.jsonl")
    check_logits(model, base, tokenizer, dump, questions)
    check_predictions(model, tokenizer, dump, questions, read_lines(args.predictions))


if __name__ == "__main__":
    main()
