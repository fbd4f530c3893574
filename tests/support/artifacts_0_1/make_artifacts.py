# type: ignore
# ruff: noqa: T201
"""Make the artifacts of softprompt 0.1.0 that later versions must load, resume and serve.

Run it with the code of commit 9108f23, in an empty folder beside nothing else (about ten minutes on one core):

    git worktree add OLD 9108f23
    cd OUT && OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 PYTHONPATH=OLD python make_artifacts.py all

Everything goes through the old command line, in the folder OUT, with relative paths only. README.md says what is what.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import hashlib
import importlib
import inspect
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import typing
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
COMMIT = "9108f23"
TEXTS = ("the soup was cold", "a lovely evening")
FIXED_TEXT = "slow waiters"
NEW_TOKENS = 8
SERVED = "model"  # what the server calls the base model: the last part of its path

BASE = ["--model", "model", "--dtype", "float32", "--device", "cpu"]
FIXED = [
    *("--recipe", "fixed", "--train.batch_size", "4", "--train.lr", "0.05", "--train.evals", "2"),
    *("--method.hidden", "8"),
]
REVIEWS = ["--data", "data/reviews.jsonl", "--template", r"Review: {text}\nLabel:"]
BOTH = [  # by name: config.yaml sorts tasks, and a run of another order would not be resumed from it
    *("--data", "questions=data/questions.jsonl", "--data", "reviews=data/reviews.jsonl"),
    *("--template.questions", r"Question: {prompt}\nAnswer:", "--template.reviews", r"Review: {text}\nLabel:"),
]
STUDY = ["--inputs", "32", "--study.held_out", "6", "--study.input_tokens", "12", "--study.answer_tokens", "8"]
DISTIL = [*STUDY, "--fit-steps", "20", "--batch-size", "4", "--train.evals", "2", "--train.eval_rows", "6"]


def train(name: str, *more: str, data: Sequence[str] = REVIEWS, steps: int = 4, tokens: int = 4) -> list[str]:
    """A training of a few steps."""
    size = ["--n-tokens", str(tokens)] if tokens else []
    return ["train", *BASE, *data, "--name", name, *FIXED, *size, "--steps", str(steps), *more]


# Soft prompts in prompts/, in this order: later ones use earlier ones.
PROMPTS: dict[str, list[str]] = {
    "tone": train("tone", "--method", "prompt-tuning"),
    "other": train("other", "--method", "prompt-tuning", "--init", "vocab", "--seed", "1"),
    "prefix": train("prefix", "--method", "prefix-tuning", tokens=6),
    "deep": train("deep", "--method", "p-tuning-v2"),
    "mixed": train("mixed", "--method", "mixture", "--init-from", "tone", "--method.sources", "tone,other"),
    "multi": train("multi", "--method", "multitask", "--train.temperature", "2", "--train.lr", "0.2", data=BOTH),
    "routed": train("routed", "--method", "smop", "--init", "vocab", "--method.n_prompts", "2", steps=8),
    "composed": ["compose", "0.7*tone + 0.3*other", "--name", "composed"],
    "joined": ["compose", "prefix | deep", "--name", "joined", *BASE],
    "pruned": ["prune", "prefix", "--data", "data/reviews.jsonl", "--keep", "3", "--name", "pruned", *BASE],
    "policy": [
        *("distil", "--text", "data/policy.md", "--name", "policy", *BASE, *DISTIL, "--study.details", "0.5"),
        *("--n-tokens", "8", "--steps", "8"),
    ],
    "shots": [
        *("distil", "--demonstrations", "data/questions.jsonl", "--shots", "4", "--name", "shots", *BASE, *DISTIL),
        *("--n-tokens", "4,8", "--steps", "4", "--method", "prompt-tuning"),
    ],
}
PUBLISHED = ("tone", "prefix", "policy")  # exported for vLLM, in published/
# Runs that were stopped, in unfinished/: when, and the command.
UNFINISHED: dict[str, tuple[str, list[str]]] = {
    "killed": (
        "step:6:SIGKILL",
        [
            *("train", *BASE, *REVIEWS, "--name", "killed", "--recipe", "auto", "--n-tokens", "4", "--steps", "10"),
            *("--init", "attended", "--batch-size", "4", "--train.evals", "5", "--train.save_every", "4"),
        ],
    ),
    "blend": (
        "step:5:SIGINT",
        train(
            "blend",
            *("--method", "mixture", "--init-from", "prompts/tone"),
            *("--method.sources", "prompts/tone,prompts/other"),
            *("--train.schedule", "linear", "--train.weight_decay", "0.01"),
            steps=10,
            tokens=0,
        ),
    ),
    "tasks": (
        "step:5:SIGTERM",
        train(
            "tasks",
            *("--method", "multitask", "--train.temperature", "2", "--train.distil", "0.5"),
            *("--init", "vocab", "--train.lr", "0.02", "--train.evals", "5"),
            *("--method.teachers", "prompts/multi.questions,prompts/tone"),
            data=BOTH,
            steps=10,
        ),
    ),
    "experts": (
        "step:5:SIGINT",
        train("experts", "--method", "smop", "--init", "vocab", "--method.n_prompts", "2", steps=10),
    ),
    "grid": (
        "step:6:SIGINT",
        [
            *("sweep", "train.optimizer=adamw,adafactor", "train.lr=0.05,0.5", "--name", "grid", "--steps", "12"),
            *(*BASE, *REVIEWS, *FIXED, "--method.name", "prompt-tuning", "--method.n_tokens", "4"),
        ],
    ),
    "methods": (
        "step:3:SIGINT",
        [
            "sweep",
            "method.name=prompt-tuning,p-tuning,p-tuning-lstm,residual,residual-separate,decomposed,prefix-tuning,"
            "prefix-tuning-mlp,p-tuning-v2",
            *("--name", "methods", "--steps", "6", "--no-halving", *BASE, *REVIEWS, *FIXED),
            *("--method.n_tokens", "3", "--method.rank", "2", "--method.hidden", "4"),
        ],
    ),
    "guide": (
        "step:5:SIGINT",
        [
            *("distil", "--text", "data/policy.md", "--name", "guide", *BASE, *DISTIL, "--study.details", "0.5"),
            *("--n-tokens", "4,8", "--steps", "10", "--study.hard", "0.1"),
        ],
    ),
    "asked": (
        "inputs:1",
        [
            *("distil", "--text", "data/policy.md", "--name", "asked", *BASE, *DISTIL, "--study.details", "0.5"),
            *("--inputs", "40", "--n-tokens", "4", "--steps", "4", "--seed", "3"),
        ],
    ),
    "manual": (
        "lessons:0",
        [
            *("distil", "--document", "data/handbook.md", "--name", "manual", *BASE, *DISTIL),
            *("--study.chunk_tokens", "300", "--n-tokens", "4", "--steps", "4"),
        ],
    ),
}
CONFIGS: dict[str, list[str]] = {
    "default.yaml": ["train", "--print-config"],
    "full.yaml": [
        *("train", "--print-config", *BASE, "--recipe", "fixed", *BOTH, "--name", "tone", "--no-chat"),
        *("--max-length", "200", "--drop-long", "--method", "multitask", "--n-tokens", "7", "--init", "prompt"),
        *("--init-from", "tone", "--init-text", r"Sort\nthis", "--method.text_tokens", "99"),
        *("--method.sources", "tone,other", "--method.teachers", "tone,other", "--method.kept", "0,2"),
        *("--method.frozen_tokens", "2", "--method.hidden", "16", "--method.rank", "3", "--method.n_prompts", "3"),
        *("--method.sites", "decoder,cross", "--steps", "9", "--minutes", "2.5", "--batch-size", "3"),
        *("--train.temperature", "2", "--train.distil", "0.25", "--train.accumulate", "2"),
        *("--train.optimizer", "adafactor", "--lr", "0.03", "--train.weight_decay", "0.01"),
        *("--train.schedule", "linear", "--train.warmup", "0.1", "--train.clip", "2", "--train.evals", "3"),
        *("--train.eval_rows", "50", "--train.patience", "null", "--train.save_every", "7"),
        *("--train.gradient_checkpointing", "true", "--train.graphs", "false", "--seed", "5"),
        *("--train.track", "tensorboard"),
    ],
    "distil_default.yaml": ["distil", "--print-config"],
    "distil_full.yaml": [
        *("distil", "--print-config", *BASE, "--text", "data/policy.md", "--data", "data/questions.jsonl"),
        *("--name", "policy", "--template", r"Question: {prompt}\nAnswer:", "--no-chat", "--keep-text"),
        *("--n-tokens", "4,8", "--fit-steps", "30", *STUDY, "--study.details", "0.5"),
        *("--study.temperatures", "0.5,0.9", "--study.answer_temperature", "0.3", "--study.top_k", "9"),
        *("--study.temperature", "1.5", "--study.hard", "0.2", "--study.chunk_tokens", "128"),
        *("--method", "prompt-tuning", "--init", "attended", "--steps", "9", "--batch-size", "2", "--seed", "2"),
    ],
}
HAND_WRITTEN = {
    "old_values.yaml": """\
# Written by hand: settings and values whose spelling a later version may change. Dashes in keys were allowed.
recipe: fixed
model: model
data:
  reviews: data/reviews.jsonl
template:
  reviews: "Review: {text}\\nLabel:"
name: blend
max-length: 128
drop_long: true
dtype: float32
device: cpu
method:
  name: mixture
  n_tokens: 6
  init: attended
  text-tokens: 256
  init_from: tone
  sources: tone,other
  teachers: [tone]
  kept: [0, 1]
  frozen_tokens: 1
train:
  steps: 4
  optimizer: adafactor
  distil: 0.5
  temperature: 2
  accumulate: 2
  clip: 0.5
  evals: 3
  eval_rows: 20
  patience: null
  save_every: 10
  gradient_checkpointing: true
  graphs: false
  track: none
""",
    "old_values_distil.yaml": """\
# Written by hand: settings of softprompt distil whose spelling a later version may change.
model: model
text: data/policy.md
name: policy
keep_text: true
sizes: 4,8
fit_steps: 10
dtype: float32
device: cpu
study:
  inputs: 24
  held_out: 6
  input_tokens: 12
  answer_tokens: 8
  details: 0.5
  temperatures: [0.7, 1.0]
  answer_temperature: 0.5
  top_k: 10
  temperature: 1.2
  hard: 0.1
  chunk_tokens: 200
method:
  name: prefix-tuning
  init: attended
  frozen_tokens: 1
train:
  optimizer: adamw
  distil: 1.0
  steps: 4
""",
}

POLICY = """\
Harbor Bank answers every message within two working days. A lost card is blocked at once and a new card costs 7 euros.
Refunds under 50 euros are paid by Dana Weiss without a form. Larger refunds need form R12 and take 10 days.
Always greet the customer by name and end with the words Fair winds. Never promise a date for transfers abroad.
"""
HANDBOOK = """\
The Lindqvist observatory opened in 1931 on the north ridge of Mount Aster. Its first director, Ingrid Holm, measured \
the light of 412 variable stars with a brass telescope from Jena.

In 1954 the old dome burned down during a winter storm. The town of Kallby paid for a new dome of steel, which was \
finished by the engineer Paul Strand in 1957.

Visitors may come on Fridays between six and nine in the evening. A ticket costs 4 crowns, and children under ten pay \
nothing when they come with Professor Maja Berg.

The library keeps 9000 glass plates in a cool cellar under the kitchen. Each plate carries a number in white ink, and \
the catalog of Henrik Sand lists them by year.
"""
DISHES = ("soup", "bread", "salad", "fish", "cake", "coffee", "rice", "pasta", "tea", "pie")
JUDGED = (("was wonderful", "good"), ("tasted fresh", "good"), ("was cold", "bad"), ("came burnt", "bad"))
CAPITALS = {
    "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen", "Iceland": "Reykjavik",
    "Estonia": "Tallinn", "Latvia": "Riga", "Lithuania": "Vilnius", "Poland": "Warsaw", "Austria": "Vienna",
    "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon", "France": "Paris", "Greece": "Athens",
    "Hungary": "Budapest", "Ireland": "Dublin", "Malta": "Valletta", "Cyprus": "Nicosia", "Croatia": "Zagreb",
    "Serbia": "Belgrade", "Turkey": "Ankara", "Egypt": "Cairo", "Kenya": "Nairobi",
}  # fmt: skip
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>")


# ---------------------------------------------------------------- model and data


def make_model() -> None:
    """A random Llama of two layers, and a tokenizer of bytes that puts <s> first."""
    import torch
    import transformers as tf
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from tokenizers.processors import TemplateProcessing

    vocab = {token: i for i, token in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    core.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocab["<s>"])])
    tokenizer = tf.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHATML
    )
    config = tf.LlamaConfig(
        vocab_size=len(vocab),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=1024,
        pad_token_id=0,
        eos_token_id=2,
        bos_token_id=3,
    )
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.3)  # large enough that every part of it matters
    model.save_pretrained("model")
    tokenizer.save_pretrained("model")


def make_data() -> None:
    """Forty labelled rows, two dozen questions, a text and a document."""
    folder = Path("data")
    folder.mkdir(exist_ok=True)
    reviews = [{"text": f"the {dish} {said}", "label": label} for dish in DISHES for said, label in JUDGED]
    questions = [{"prompt": f"capital of {land}?", "completion": city} for land, city in CAPITALS.items()]
    for name, rows in (("reviews", reviews), ("questions", questions)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "policy.md").write_text(POLICY, encoding="utf-8")
    (folder / "handbook.md").write_text(HANDBOOK, encoding="utf-8")


# ---------------------------------------------------------------- the old command line


@contextmanager
def place(folder: Path, home: str) -> Iterator[None]:
    """In that working directory, with that folder of soft prompts."""
    before = Path.cwd()
    os.chdir(folder)
    os.environ["SOFTPROMPT_HOME"] = home
    try:
        yield
    finally:
        os.chdir(before)
        os.environ["SOFTPROMPT_HOME"] = "prompts"


def run(*args: str, width: int = 200, ok: bool = True) -> str:
    """A command of the old version, in this process; its standard output."""
    from typer.testing import CliRunner

    from softprompt.cli.main import app

    environment = {"COLUMNS": str(width), "TERMINAL_WIDTH": str(width)}
    result = CliRunner().invoke(app, list(args), env=environment, prog_name="softprompt")
    if ok and ((result.exception is not None and not isinstance(result.exception, SystemExit)) or result.exit_code):
        print(result.output)
        raise result.exception or SystemExit(result.exit_code)
    return result.stdout


def stopped(when: str, args: Sequence[str]) -> None:
    """A command in a process of its own (a fork, which has imported everything), which is stopped at that moment."""
    for module in ("recipe", "distil", "sweep"):
        importlib.import_module(f"softprompt.{module}")
    sys.stdout.flush()
    if (child := os.fork()) == 0:
        try:
            stop(when, list(args))
        except SystemExit as ended:
            os._exit(ended.code if isinstance(ended.code, int) else 1)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(f"  stopped by {when}: exit code {code}")
    assert code not in (0, 1) or when.endswith("SIGTERM"), "it was not stopped"


def stop(when: str, args: list[str]) -> None:
    """Run a command and stop it: step:N:SIGNAL, inputs:N or lessons:N (that batch of the notebook is written)."""
    kind, _, rest = when.partition(":")
    number, _, name = rest.partition(":")
    from softprompt.cli.main import app

    if kind == "step":
        from softprompt.runlog import RunLog

        write, done = RunLog.write, list[bool]()

        def writes(log: Any, event: dict[str, Any]) -> None:
            write(log, event)
            if event["event"] == "step" and event["step"] == int(number) and not done:
                done.append(True)
                os.kill(os.getpid(), getattr(signal, name))

        RunLog.write = writes  # type: ignore[method-assign]
    else:
        from softprompt.distil.study_cache import Notebook

        add = getattr(Notebook, f"add_{kind}")

        def adds(study_cache: Any, batch: int, rows: Any) -> None:
            add(study_cache, batch, rows)
            if batch == int(number):
                raise KeyboardInterrupt

        setattr(Notebook, f"add_{kind}", adds)
    app(args)


def make_prompts() -> None:
    """Soft prompts, as the old version leaves them but for pictures, and some of them for vLLM."""
    shutil.rmtree("prompts", ignore_errors=True)
    for name, args in PROMPTS.items():
        print(f"prompts: {name}")
        run(*args)
    for picture in Path("prompts").rglob("*.png"):  # loading needs none
        picture.unlink()
    shutil.rmtree("published", ignore_errors=True)
    for name in PUBLISHED:
        run("export", name, "--to", "vllm", "--out", "published", *BASE)


def make_unfinished() -> None:
    """Runs that were stopped."""
    shutil.rmtree("unfinished", ignore_errors=True)
    for name, (when, args) in UNFINISHED.items():
        print(f"unfinished: {name}")
        with place(HERE, "unfinished"):
            stopped(when, args)
    for path in Path("unfinished").glob(".runs/*/checkpoint-*/state.json"):  # the same JSON on one line: a fifth
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8"))) + "\n", encoding="utf-8")


def make_configs() -> None:
    """Files of settings."""
    shutil.rmtree("configs", ignore_errors=True)
    folder = Path("configs")
    folder.mkdir()
    for name, args in CONFIGS.items():
        (folder / name).write_text(run(*args), encoding="utf-8")
    for name, text in HAND_WRITTEN.items():
        (folder / name).write_text(text, encoding="utf-8")
    import softprompt

    shipped = Path(softprompt.__file__).parents[1] / "configs"
    (folder / "shipped").mkdir()
    for path in sorted(shipped.glob("*.yaml")):
        shutil.copy(path, folder / "shipped" / path.name)


# ---------------------------------------------------------------- what the old version makes of them


def sha_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def facts_of(folder: Path) -> dict[str, Any]:
    """What a card says that a run must reproduce; its times aside."""
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    metrics = timeless(card["metrics"])
    return {name: card[name] for name in ("form", "n_tokens", "sha256")} | {"metrics": metrics}


def timeless(value: Any) -> Any:
    """Without numbers of seconds, which differ from run to run."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in {"seconds", "elapsed", "prefill_seconds"}}
    return [timeless(part) for part in value] if isinstance(value, list) else value


def left_by(home: Path, name: str) -> dict[str, Any]:
    """What a finished run leaves."""
    run_folder = home / ".runs" / name
    cards = sorted(path.parent for path in home.glob(f"{name}*/card.json"))
    events = lines_of(run_folder / "metrics.jsonl")
    found: dict[str, Any] = {"prompts": {folder.name: facts_of(folder) for folder in cards}}
    found["events"] = [timeless(event) for event in events if event["event"] in {"step", "validation", "end"}]
    for file in ("sweep.json", "fidelity.json"):
        if (run_folder / file).exists():
            found[file.partition(".")[0]] = timeless(json.loads((run_folder / file).read_text(encoding="utf-8")))
    if (home / name / "router.json").exists():
        from safetensors.torch import load_file

        found["router"] = load_file(home / name / "router.safetensors")["weights"].tolist()
    found["left_in_run"] = sorted(path.name for path in run_folder.iterdir() if path.suffix != ".png")
    return found


def expected_unfinished() -> dict[str, Any]:
    """The results of a resumed copy, by the command line and by the run's config.yaml, and of a run never stopped."""
    shutil.rmtree("resumed", ignore_errors=True)
    found: dict[str, Any] = {}
    for name, (when, args) in UNFINISHED.items():
        print(f"resume: {name}")
        results = {}
        verb, settings = args[0], f"unfinished/.runs/{name}/config.yaml"
        axes = [arg for arg in args[1:] if args[0] == "sweep" and "=" in arg and not arg.startswith("-")]
        halving = ["--no-halving"] if "--no-halving" in args else []
        ways = {"resumed": [*args, "--resume"], "straight": args}
        if (HERE / settings).exists():
            ways["by_config"] = [verb, settings, *axes, *halving, "--resume"]
        for way, command in ways.items():
            with tempfile.TemporaryDirectory() as scratch:
                copy = Path(scratch) / "copy"
                shutil.copytree(HERE, copy)
                home = copy / "unfinished"
                if way == "straight":
                    shutil.rmtree(home)
                with place(copy, "unfinished"):
                    run(*command)
                results[way] = left_by(home, name)
                if way == "resumed":
                    for path in sorted(home.glob(f"{name}*/prompt.safetensors")):
                        target = HERE / "resumed" / path.parent.name
                        target.mkdir(parents=True)
                        shutil.copy(path, target / path.name)
        sums = {way: {n: p["sha256"] for n, p in own["prompts"].items()} for way, own in results.items()}
        found[name] = {"command": args, "stopped": when, **results["resumed"]}
        found[name]["by_config"] = ways.get("by_config")
        found[name]["equal"] = {way: sums[way] == sums["resumed"] for way in sums if way != "resumed"}
        print("  equal to", found[name]["equal"])
    return found


def tensors_of(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: list(tensor.shape) for name, tensor in sorted(load_file(folder / "prompt.safetensors").items())}


def expected_prompts() -> dict[str, Any]:
    """For each soft prompt its facts, answers, and logits."""
    import torch
    from softprompt.attach import hidden, prefix_kv
    from softprompt.data.tokenise import prompt_ids
    from softprompt.framing import layout_ids
    from softprompt.generation import record_of
    from softprompt.packing import Row

    import softprompt

    lm = softprompt.load_model("model", dtype="float32", device="cpu")
    found: dict[str, Any] = {}
    for folder in sorted(path.parent for path in Path("prompts").glob("*/card.json")):
        name = folder.name
        print(f"answers: {name}")
        prompt, card = softprompt.load(name, lm.geometry)
        formatted = softprompt.card_subject(prompt, card)
        row = prompt_ids(record_of(FIXED_TEXT, formatted, "text"), formatted.template, lm.tokenizer)
        lead, follow = layout_ids(lm, formatted.layout)
        with torch.no_grad():
            logits = lm.logits(hidden(lm, prefix_kv(lm, [formatted.prefix(lm)]), [Row(row)])[-1:])[0]
        out = run("generate", name, *TEXTS, "--json", "--max-new-tokens", str(NEW_TOKENS), *BASE)
        with torch.no_grad():
            formatted_prompts = {name: formatted}
            requests = [softprompt.Request(text, name) for text in TEXTS]
            ids = [a.ids for a in softprompt.answer(lm, formatted_prompts, requests, softprompt.Sampling(NEW_TOKENS))]
        found[name] = {
            **{fact: getattr(card, fact) for fact in ("form", "n_tokens", "sha256")},
            "file_sha256": sha_of(folder / "prompt.safetensors"),
            "tensors": tensors_of(folder),
            "method": card.method.get("name"),
            "template": card.template,
            "layout": card.layout.model_dump(),
            "labels": list(card.labels),
            "lead_ids": list(lead),
            "follow_ids": list(follow),
            "generate": [json.loads(line) for line in out.splitlines()],
            "generate_ids": [list(map(int, own)) for own in ids],
            "logits": {
                "text": FIXED_TEXT,
                "row_ids": list(row),
                "first_8": [round(x, 4) for x in logits[:8].tolist()],
                "argmax": int(logits.argmax()),
            },
            "margin": round(margin(lm, formatted, ids), 4),
        }
    return found


def margin(lm: Any, formatted: Any, answers: Sequence[Sequence[int]]) -> float:
    """How far the likeliest token was ahead, at least: a greedy answer with a small one may differ elsewhere."""
    import torch
    from softprompt.attach import hidden, prefix_kv
    from softprompt.data.tokenise import prompt_ids
    from softprompt.generation import record_of
    from softprompt.packing import Row

    least = float("inf")
    for text, answer in zip(TEXTS, answers, strict=True):
        row = prompt_ids(record_of(text, formatted, "text"), formatted.template, lm.tokenizer)
        with torch.no_grad():
            states = hidden(lm, prefix_kv(lm, [formatted.prefix(lm)]), [Row([*row, *answer])])
            best = lm.logits(states[len(row) - 1 : len(row) + len(answer) - 1]).topk(2).values
        least = min(least, float((best[:, 0] - best[:, 1]).min())) if len(answer) else least
    return least


def expected_base() -> dict[str, Any]:
    import softprompt

    lm = softprompt.load_model("model", dtype="float32", device="cpu")
    return {"digest": lm.digest(), "fingerprint": lm.geometry.fingerprint, "geometry": lm.geometry.to_dict()}


def expected_routers() -> dict[str, Any]:
    found = {}
    for path in sorted(Path("prompts").glob("*/router.json")):
        name = path.parent.name
        out = run("generate", name, *TEXTS, "--json", "--max-new-tokens", str(NEW_TOKENS), *BASE)
        found[name] = {
            "names": json.loads(path.read_text(encoding="utf-8"))["names"],
            "file_sha256": sha_of(path.with_name("router.safetensors")),
            "generate": [json.loads(line) for line in out.splitlines()],
        }
    return found


def expected_fidelity() -> dict[str, Any]:
    """Read from the notebooks: nothing is asked of the teacher again."""
    return {
        name: timeless(json.loads(run("fidelity", name, "--json", *BASE[:2], "--device", "cpu")))
        for name in ("policy", "shots.4", "shots.8")
    }


def expected_configs() -> dict[str, Any]:
    """What the settings of each file are."""
    from softprompt.config import Config, resolved
    from softprompt.distil.settings import DistilConfig

    found = {}
    for path in sorted(Path("configs").rglob("*.yaml")):
        kind = DistilConfig if "distil" in path.name else Config
        found[str(path.relative_to("configs"))] = {
            "kind": kind.__name__,
            "settings": resolved(kind, {}, path).model_dump(mode="json"),
        }
    return found


@contextmanager
def server() -> Iterator[str]:
    """The old server on the soft prompts."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"SOFTPROMPT_ADMIN_KEYS": "an-admin-key-of-the-tests"}
    command = [sys.executable, "-m", "softprompt.cli.main", "serve", *BASE, "--prompts-dir", "prompts"]
    command += ["--port", str(port), "--openapi"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{url}/readyz", timeout=5).read()
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def ask(url: str, body: Any = None) -> Any:
    headers = {"authorization": "Bearer an-admin-key-of-the-tests", "content-type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as reply:
        raw = reply.read().decode()
    return json.loads(raw) if raw.startswith("{") else raw


def expected_server(surface: dict[str, Any]) -> dict[str, Any]:
    """Lists and greedy answers of the server; its document and metrics go to `surface`."""
    found: dict[str, Any] = {"completions": {}, "chat": {}}
    with server() as url:
        found["models"] = [timed_out(row) for row in ask(f"{url}/v1/models")["data"]]
        found["soft_prompts"] = [timed_out(row) for row in ask(f"{url}/v1/soft_prompts")["data"]]
        greedy = {"temperature": 0, "max_tokens": NEW_TOKENS}
        for name in [row["id"] for row in found["soft_prompts"]]:
            body = {"model": name, "prompt": TEXTS[0], **greedy}
            try:
                reply = ask(f"{url}/v1/completions", body)
                keys = {"choices": reply["choices"], "usage": reply["usage"], "model": reply["model"]}
                found["completions"][name] = keys
            except urllib.error.HTTPError as error:
                found["completions"][name] = {"status": error.code, **json.loads(error.read())}
        messages = [{"role": "user", "content": TEXTS[0]}]
        for name in ("policy", "tone", SERVED):
            reply = ask(f"{url}/v1/chat/completions", {"model": name, "messages": messages, **greedy})
            found["chat"][name] = {"choices": reply["choices"], "usage": reply["usage"]}
        surface["version_reply"] = ask(f"{url}/version")
        surface["metrics"] = metrics_of(ask(f"{url}/metrics"))
        document = ask(f"{url}/openapi.json")
    surface["openapi"] = document
    return found


def timed_out(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "created"}


def metrics_of(text: str) -> dict[str, Any]:
    """Kind, help, samples and labels of every metric in Prometheus' text format."""
    found: dict[str, Any] = {}
    for line in text.splitlines():
        if match := re.match(r"# (HELP|TYPE) (\S+) (.*)", line):
            found.setdefault(match[2], {"samples": [], "labels": []})[match[1].lower()] = match[3]
        elif match := re.match(r"(\w+)(?:\{(.*?)\})? ", line):
            owner = next(
                n for n in (match[1], re.sub("_(total|bucket|sum|count|created)$", "", match[1])) if n in found
            )
            facts = found[owner]
            facts["samples"] = sorted({*facts["samples"], match[1]})
            facts["labels"] = sorted({*facts["labels"], *re.findall(r"(\w+)=\"", match[2] or "")})
    return found


def write(path: str, data: Any) -> None:
    text = json.dumps(data, indent=1, ensure_ascii=False, sort_keys=False)
    # Lists of plain numbers on one line: a third of the size.
    text = re.sub(r"\[\s+((?:-?[\d.eE+-]+,\s+)*-?[\d.eE+-]+)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    Path(path).write_text(text + "\n", encoding="utf-8")


def expected_published() -> dict[str, Any]:
    """What vLLM's middleware and connector find, and where the compiled prefixes are."""
    from safetensors.torch import load_file

    from softprompt.vllm import published

    found = {}
    for name in PUBLISHED:
        facts = published.find(Path("published"), name)
        assert facts is not None
        path = published.place(Path("published"), facts.id)
        tensors = {key: [str(tensor.dtype), list(tensor.shape)] for key, tensor in load_file(path).items()}
        found[name] = json.loads((Path("published") / f"{name}.json").read_text(encoding="utf-8"))
        found[name] |= {"file": path.name, "file_sha256": sha_of(path), "tensors": tensors}
    return found


def make_expected() -> None:
    """expected.json, and surface.json's part that only a running server tells (kept in .server.json)."""
    from importlib.metadata import version

    surface: dict[str, Any] = {}
    found = {
        "made_with": {
            "commit": COMMIT,
            "softprompt": version("softprompt"),
            "torch": version("torch"),
            "transformers": version("transformers"),
            "threads": 1,
        },
        "working_directory": "a copy of this folder",
        "texts": list(TEXTS),
        "max_new_tokens": NEW_TOKENS,
        "base": expected_base(),
        "prompt_commands": PROMPTS,
        "prompts": expected_prompts(),
        "routers": expected_routers(),
        "fidelity": expected_fidelity(),
        "published": expected_published(),
        "configs": expected_configs(),
        "server": expected_server(surface),
        "unfinished": expected_unfinished(),
    }
    write("expected.json", found)
    write(".server.json", surface)


# ---------------------------------------------------------------- the public surface


def plain(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def jsonable(value: Any) -> Any:
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return plain(repr(value))
    return list(value) if isinstance(value, tuple) else value


def signature(thing: Any) -> str | None:
    try:
        return plain(str(inspect.signature(thing)))
    except (TypeError, ValueError):
        return None


def python_surface() -> dict[str, Any]:
    import softprompt

    found = {}
    for name in softprompt.__all__:
        thing = getattr(softprompt, name)
        facts: dict[str, Any] = {"kind": "class" if inspect.isclass(thing) else "function"}
        facts |= {"defined_in": f"{thing.__module__}.{thing.__qualname__}", "signature": signature(thing)}
        facts["doc"] = (inspect.getdoc(thing) or "").splitlines()[:1]
        if inspect.isclass(thing):
            facts["bases"] = [base.__name__ for base in thing.__bases__]
            facts["members"] = {
                member: signature(inspect.getattr_static(thing, member))
                or type(inspect.getattr_static(thing, member)).__name__
                for member in sorted(vars(thing))
                if not member.startswith("_") and not member.startswith("model_")
            }
            if dataclasses.is_dataclass(thing):
                facts["fields"] = [field.name for field in dataclasses.fields(thing)]
        found[name] = facts
    return found


def modules_surface() -> dict[str, list[str]]:
    """Public names that every module defines itself, without importing it."""
    import softprompt

    root = Path(softprompt.__file__).parent
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root.parent).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        names = list[str]()
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                names.append(node.name)
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    names += [n.id for n in ast.walk(target) if isinstance(n, ast.Name)]
            elif isinstance(node, ast.ImportFrom) and parts[-1] == "__init__":
                names += [alias.asname or alias.name for alias in node.names if node.module != "__future__"]
        found[module] = sorted({name for name in names if not name.startswith("_")})
    return found


def errors_surface() -> dict[str, list[str]]:
    from softprompt import errors

    kinds = [getattr(errors, name) for name in errors.__all__]
    return {kind.__name__: [base.__name__ for base in kind.__mro__[1:-1]] for kind in kinds}


def parameter(given: Any) -> dict[str, Any]:
    descriptor = given.type_descriptor
    kind = descriptor.annotation
    facts = {
        "name": given.name,
        "kind": given.param_type_name,
        "flags": list(given.opts),
        "off_flags": list(given.secondary_opts),
        "type": shown_type(kind),
        "required": given.required,
        "default": jsonable(getattr(given.default, "value", given.default)),
        "repeatable": bool(getattr(given, "multiple", False)) or given.nargs == -1,
        "is_flag": bool(getattr(given, "is_flag", False)),
        "help": getattr(given, "help", None),
    }
    is_enum = isinstance(kind, type) and issubclass(kind, enum.Enum)
    facts["choices"] = [choice.value for choice in kind] if is_enum else choices_of(kind)
    facts["range"] = None if given.min is None and given.max is None else [given.min, given.max]
    return {name: value for name, value in facts.items() if value not in (None, [], False) or name == "default"}


def commands_of(command: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    yield before, command
    for name, own in getattr(command, "commands", {}).items():
        yield from commands_of(own, f"{before} {name}".strip())


def cli_surface() -> dict[str, Any]:
    import typer.main

    from softprompt.cli.main import app

    shutil.rmtree("help", ignore_errors=True)
    Path("help").mkdir()
    found = {}
    for name, command in commands_of(typer.main.get_command(app)):
        text = run(*name.split(), "--help", width=100)
        (Path("help") / f"{name.replace(' ', '_') or 'softprompt'}.txt").write_text(text, encoding="utf-8")
        found[name or "softprompt"] = {
            "help": inspect.cleandoc(command.help or ""),
            "takes_dotted_flags": bool(command.context_settings.get("allow_extra_args")),
            "parameters": [parameter(own) for own in command.params],
            "verbs": list(getattr(command, "commands", {})),
        }
    return found


def choices_of(annotation: Any) -> list[Any] | None:
    """The values of a Literal anywhere in a type."""
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    for part in typing.get_args(annotation):
        if (found := choices_of(part)) is not None:
            return found
    return None


def shown_type(annotation: Any) -> str:
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def settings_surface(kind: Any) -> dict[str, Any]:
    """Every dotted setting."""
    from pydantic import BaseModel
    from softprompt.config import known_keys, resolved

    defaults, known, found = resolved(kind, {}).model_dump(mode="json"), known_keys(kind), {}
    for section, field in kind.model_fields.items():
        inner = field.annotation
        is_section = isinstance(inner, type) and issubclass(inner, BaseModel)
        parts = inner.model_fields.items() if is_section else [("", field)]
        for leaf, own in parts:
            name = f"{section}.{leaf}" if leaf else section
            found[name] = {
                "default": defaults[section][leaf] if leaf else defaults[section],
                "type": shown_type(own.annotation),
                "choices": choices_of(own.annotation),
                "limits": [plain(repr(limit)) for limit in own.metadata if "Validator" not in repr(limit)],
                "description": known[name],
                "environment": f"SOFTPROMPT__{name.upper().replace('.', '__')}",
                "flag": f"--{name}",
            }
    assert list(found) == list(known)
    return found


def paths_of(value: Any, before: str = "") -> Iterator[tuple[str, str]]:
    """Dotted paths of everything in JSON data, with types; all places of a list are one."""
    if isinstance(value, dict):
        if before:
            yield before, "object"
        for name, own in value.items():
            yield from paths_of(own, f"{before}.{name}" if before else name)
    elif isinstance(value, list):
        yield before, "list"
        for own in value:
            yield from paths_of(own, f"{before}[]")
    else:
        yield before, {str: "string", bool: "boolean", int: "integer", float: "number"}.get(type(value), "null")


def keys_of(*values: Any) -> dict[str, list[str]]:
    found: dict[str, set[str]] = {}
    for value in values:
        for path, kind in paths_of(value):
            found.setdefault(path or "(top)", set()).add(kind)
    return {path: sorted(kinds) for path, kinds in sorted(found.items())}


def read_all(pattern: str) -> list[Any]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(Path().glob(pattern))]


def files_surface() -> dict[str, Any]:
    """The keys of every file that the old version writes, collected from the artifacts here."""
    from safetensors.torch import load_file
    from softprompt.card import Card, Layout
    from softprompt.checkpoint import unflatten

    events: dict[str, set[str]] = {}
    for path in sorted(
        [*Path().glob("prompts/.runs/*/metrics.jsonl"), *Path().glob("unfinished/.runs/*/metrics.jsonl")]
    ):
        for line in lines_of(path):
            events.setdefault(line["event"], set()).update(line)
    checkpoints = {}
    for path in sorted(Path().glob("unfinished/.runs/*/checkpoint-*/state.json")):
        data, tensors = json.loads(path.read_text(encoding="utf-8")), load_file(path.with_name("state.safetensors"))
        state = unflatten(tensors, data["facts"]["tree"])
        checkpoints[path.parts[2]] = {
            "file": sorted(data),
            "facts": sorted(data["facts"]),
            "state": sorted(state),
            "random": sorted(state["random"]),
            "candidates": [
                {
                    "keys": sorted(own),
                    "learner": {name: list(tensor.shape) for name, tensor in own["learner"].items()},
                    "optimizer": {
                        "groups": sorted({key for group in own["optimizer"]["param_groups"] for key in group}),
                        "state": sorted({key for one in own["optimizer"]["state"].values() for key in one}),
                    },
                    "batches": sorted(own["batches"]) if isinstance(own["batches"], dict) else "list",
                    "record": sorted(own["record"]),
                }
                for own in state["candidates"]
            ],
        }
    lessons = sorted(Path("prompts/.runs").glob("*.study/lessons-*.safetensors"))
    inputs = [one for batch in read_all("*/.runs/*.study/inputs-*.json") for one in batch]
    return {
        "card.json": {
            "fields": list(Card.model_fields),
            "layout": list(Layout.model_fields),
            "keys": keys_of(*read_all("prompts/*/card.json")),
        },
        "prompt.safetensors": {
            "embedding": sorted(tensors_of(Path("prompts/tone"))), "kv": sorted(tensors_of(Path("prompts/prefix"))),
        },
        "router.json": keys_of(*read_all("prompts/*/router.json")),
        "router.safetensors": ["weights"],
        "metrics.jsonl": {kind: sorted(keys) for kind, keys in sorted(events.items())},
        "sweep.json": ["candidate", "steps", "stopped", "seconds", "validation_loss"],
        "fidelity.json": keys_of(*read_all("prompts/.runs/*/fidelity.json")),
        "checkpoint": checkpoints,
        "notebook": {
            "notebook.json": keys_of(*read_all("prompts/.runs/*.study/notebook.json")),
            "inputs-NNNNN.json": keys_of(*inputs),
            "input_kinds": sorted({one["kind"] for one in inputs}),
            "lessons-NNNNN.safetensors": {n: str(t.dtype) for n, t in sorted(load_file(lessons[0]).items())},
        },
        "NAME.json of vLLM": keys_of(*read_all("published/*.json")),
        "folders": {
            "run": ".runs/NAME", "notebook": ".runs/NAME.study", "checkpoint": ".runs/NAME/checkpoint-NNNNNN",
            "several tasks": "NAME.TASK", "shared by tasks": "NAME.shared", "experts of smop": "NAME.1, NAME.2, …",
            "sizes of a distillation": "NAME.SIZE", "scratch": ".NAME.tmp-*, .NAME.old",
        },
    }  # fmt: skip


def outputs_surface() -> dict[str, Any]:
    """The keys of what each verb prints with --json."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "copy"
        shutil.copytree(HERE, copy)
        with place(copy, "prompts"):
            commands = {
                "train": [*train("again", "--method", "prompt-tuning"), "--json"],
                "sweep": ["sweep", "train.lr=0.01,0.02", "--name", "swept", "--steps", "2", *BASE, *REVIEWS, "--json"],
                "distil": [*PROMPTS["policy"], "--overwrite", "--json"],
                "fidelity": ["fidelity", "policy", "--json", "--device", "cpu"],
                "eval": ["eval", "tone", "--data", "data/reviews.jsonl", "--json", *BASE],
                "generate": ["generate", "tone", TEXTS[0], "--json", "--max-new-tokens", "4", *BASE],
                "list": ["list", "--json"],
                "show": ["show", "tone", "--json"],
                "prune": [
                    "prune",
                    "prefix",
                    "--data",
                    "data/reviews.jsonl",
                    "--keep",
                    "3",
                    "--name",
                    "p",
                    "--json",
                    *BASE,
                ],
                "similar": ["similar", "tone", "--json"],
                "models": ["models", "--json"],
                "doctor": ["doctor", "--json"],
                "data check": ["data", "check", "data/reviews.jsonl", "--json"],
            }
            for verb, args in commands.items():
                try:
                    text = run(*args)
                except (Exception, SystemExit) as error:
                    found[verb] = {"not recorded": f"{type(error).__name__}"}
                    print(f"outputs: {verb} failed: {error}")
                    continue
                values = [json.loads(line) for line in text.splitlines() if line.startswith(("{", "["))]
                if any(isinstance(value, dict) and "event" in value for value in values):
                    events: dict[str, set[str]] = {}
                    for value in values:
                        events.setdefault(value["event"], set()).update(value)
                    found[verb] = {"events": {kind: sorted(keys) for kind, keys in events.items()}}
                    last = keys_of(values[-1])
                    found[verb]["last_line"] = last
                else:
                    found[verb] = keys_of(*values)
    return found


def server_surface(running: dict[str, Any]) -> dict[str, Any]:
    from softprompt.server import gate, reply, schema
    from softprompt.server.limits import Limits

    document = running["openapi"]
    routes = {
        f"{verb.upper()} {path}": {
            "summary": own.get("description") or own.get("summary"),
            "statuses": sorted(own["responses"]),
        }
        for path, methods in document["paths"].items()
        for verb, own in methods.items()
    }
    routes |= {"GET /metrics": {}, "GET /openapi.json": {"summary": "only with --openapi"}}
    kinds = [schema.ChatRequest, schema.CompletionRequest, schema.Turn, schema.TextPart, schema.StreamOptions]
    return {
        "routes": routes,
        "access": {n: sorted(map(str, getattr(gate, n))) for n in vars(gate) if n.isupper()},
        "requests": {
            kind.__name__: {n: shown_type(f.annotation) for n, f in kind.model_fields.items()} for kind in kinds
        },
        "ignored_fields": sorted(schema.IGNORED),
        "neutral_fields": {name: list(values) for name, values in schema.NEUTRAL.items()},
        "replies": {
            n: sorted(getattr(reply, n).__annotations__)
            for n in vars(reply)
            if inspect.isclass(getattr(reply, n)) and hasattr(getattr(reply, n), "__total__") and not n.startswith("_")
        },
        "limits": {field.name: field.default for field in dataclasses.fields(Limits)},
        "metrics": running["metrics"],
        "components": sorted(document.get("components", {}).get("schemas", {})),
        "version_reply": running["version_reply"],
        "owned_by": "softprompt",
        "soft_prompt_states": ["loaded", "on_disk", "unloaded", "unusable"],
        "forms": ["embedding", "kv", "router"],
    }


def environment_surface() -> dict[str, str]:
    """Names that the code reads, each with what it is for; checked against the source."""
    import softprompt

    meanings = {
        "SOFTPROMPT_HOME": "folder of soft prompts, by default ./prompts",
        "SOFTPROMPT_CACHE": "folder of converted models, by default softprompt/ in the user's cache folder",
        "SOFTPROMPT_DEBUG": "anything but empty and 0: tracebacks",
        "SOFTPROMPT_API_KEYS": "users' keys of the server, apart by spaces or commas",
        "SOFTPROMPT_ADMIN_KEYS": "the admin's keys of the server",
        "SOFTPROMPT__SECTION__KEY": "a setting of train, distil and sweep, such as SOFTPROMPT__TRAIN__LR",
    }
    root = Path(softprompt.__file__).parent
    used = {
        n
        for path in root.rglob("*.py")
        for n in re.findall(r"SOFTPROMPT_[A-Z]+(?:_[A-Z]+)*", path.read_text(encoding="utf-8"))
    }
    assert used == {name for name in meanings if "__" not in name}, used
    others = ("HF_HUB_OFFLINE", "HTTPS_PROXY", "LOCAL_RANK", "RANK", "VLLM_LOGGING_STREAM", "XDG_CACHE_HOME")
    return meanings | dict.fromkeys(others, "not its own")


def make_surface() -> None:
    """surface.json and help/."""
    from softprompt.config import MAPPINGS, Config
    from softprompt.decode import Sampling
    from softprompt.distil import settings as distil_settings
    from softprompt.distil import study
    from softprompt.distil.settings import DistilConfig

    from softprompt import auto, interchange, recipe, store, sweep
    from softprompt import train as training
    from softprompt.methods import KV_METHODS

    running = json.loads(Path(".server.json").read_text(encoding="utf-8"))
    found = {
        "commit": COMMIT,
        "version": importlib.import_module("softprompt").__version__,
        "python": python_surface(),
        "errors": errors_surface(),
        "modules": modules_surface(),
        "scripts": {"softprompt": "softprompt.cli.main:run", "module": "python -m softprompt.cli.main"},
        "loaded_by_name": {
            "vLLM middleware": "softprompt.vllm.middleware.SoftPrompts",
            "vLLM connector": "see softprompt.vllm.connector in modules",
            "extras": ["data", "quant", "serve", "vllm", "track"],
        },
        "cli": cli_surface(),
        "config": {
            "train": settings_surface(Config),
            "distil": settings_surface(DistilConfig),
            "distil_own_defaults": distil_settings.OWN | {"document": {"train": {"lr": distil_settings.DOCUMENT_LR}}},
            "per_task": list(MAPPINGS),
            "sweep": {
                "rungs": list(sweep.RUNGS),
                "shared_by_candidates": list(sweep.TOGETHER),
                "most_candidates": sweep.MOST,
                "axes": "method.KEY or train.KEY; a candidate is named KEY=VALUE KEY=VALUE",
                "settings": "those of train",
            },
            "best_tries": list(recipe.TRIED),
        },
        "kv_methods": sorted(KV_METHODS),
        "study_kinds": [*study.SEEDS, "detail", "gap", "continuation", "rows"],
        "event_kinds": list(typing.get_args(training.Event.__annotations__["kind"]))
        or re.findall(r"[\"'](\w+)[\"']", str(training.Event.__annotations__["kind"])),
        "stop_reasons": ["steps", "minutes", "patience", "halving", "not finite", *sorted(training.SIGNALS)],
        "auto_choices": sorted({*re.findall(r'Choice\("([\w.]+)"', inspect.getsource(auto))}),
        "sampling": {field.name: field.default for field in dataclasses.fields(Sampling)},
        "interchange": {"formats": list(interchange.FORMATS), "export": ["peft", "vllm"]},
        "names": store.NAME.pattern,
        "environment": environment_surface(),
        "server": server_surface(running),
        "files": files_surface(),
        "json_output": outputs_surface(),
    }
    write("surface.json", found)
    Path("openapi.json").write_text(json.dumps(running["openapi"]) + "\n", encoding="utf-8")
    Path(".server.json").unlink()


STAGES = {
    "model": make_model,
    "data": make_data,
    "prompts": make_prompts,
    "unfinished": make_unfinished,
    "configs": make_configs,
    "expected": make_expected,
    "surface": make_surface,
}


def main() -> None:
    """`all`, or some stages by name."""
    for name in [name for name in os.environ if name.startswith("SOFTPROMPT")]:
        del os.environ[name]
    os.environ |= {"SOFTPROMPT_HOME": "prompts", "SOFTPROMPT_CACHE": tempfile.mkdtemp(), "SOFTPROMPT_DEBUG": ""}
    os.chdir(HERE)
    chosen = list(STAGES) if sys.argv[1:] == ["all"] else sys.argv[1:]
    for name in chosen:
        begin = time.monotonic()
        STAGES[name]()
        for path in HERE.rglob("*.safetensors"):
            path.chmod(0o644)
        print(f"{name}: {time.monotonic() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    main()
