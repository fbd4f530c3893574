"""On how many of Transformers' architectures does softprompt work exactly?

    python scripts/architectures [--only NAME ...] [--kinds causal,seq2seq,vision,variants]
                            [--out results.jsonl] [--table table.md] [--jobs 1] [--timeout 300]

For every architecture a tiny random float32 model is made from its config class, saved, loaded the way a user would
(`softprompt.load_model`) and compared with Transformers' own forward on concatenated inputs. Each architecture runs
in a process of its own (forked), so that a crash or a hang is one line of the table. Needs the repository's virtual
environment; reads nothing from a network and writes only to a temporary folder and to the files that are named.

Checks, where the model is accepted:
    emb    logits behind an embedding prompt = Transformers' on concatenated inputs_embeds
    text   an embedding prompt made of a text's embeddings = that text as ids
    kv     logits behind a KV prompt = Transformers' with a DynamicCache prefilled with it
    long   as emb, with a row that nearly fills the context
    grad   gradient of the loss by both prompts = that of plain concatenation
    gen    greedy answers, 3 rows, 2 prompts, and all rows behind one prompt = one-by-one Transformers' generation
    train  3 steps of prompt tuning and prefix tuning by `softprompt.fit` with the recipe auto; the model unchanged
    move   keys of a KV prompt can be moved (compose, attended starts)
    serve  the continuous batching engine starts and answers as `generate` does
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import signal
import sys
import time
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch
import transformers
from examine import examine
from oracle import short, where
from transformers.models.auto import modeling_auto as auto

from configs import VARIANTS, VISION

REPO = str(Path(__file__).resolve().parents[2])
sys.path.insert(0, REPO)


def cases(kinds: set[str]) -> list[tuple[str, str, dict, str]]:
    """(name, model type, changes, auto class) of everything to examine."""

    found = []
    if "causal" in kinds:
        found += [(name, name, {}, "AutoModelForCausalLM") for name in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    if "seq2seq" in kinds:
        names = auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
        found += [(f"{name} (seq2seq)", name, {}, "AutoModelForSeq2SeqLM") for name in names]
    if "vision" in kinds:
        found += [(f"{name} (vision)", name, {}, "AutoModelForImageTextToText") for name in VISION]
    if "variants" in kinds:
        found += [(name, kind, changes, "AutoModelForCausalLM") for name, (kind, changes) in VARIANTS.items()]
    return found


def _child(case, repo: str, only: set[str], pipe) -> None:

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    devnull = os.open(os.devnull, os.O_WRONLY)
    if not os.environ.get("ARCH_DEBUG"):
        os.dup2(devnull, 1)
        os.dup2(devnull, 2)
    name, model_type, changes, auto = case
    try:
        fact = examine(name, model_type, copy.deepcopy(changes), auto, repo, only)
    except BaseException as error:
        fact = {
            "name": name,
            "model_type": model_type,
            "verdict": "script",
            "reason": short(error) + where(error, repo),
        }
    pipe.send(fact)
    pipe.close()
    os._exit(0)


def run_one(case, repo: str, only: set[str], timeout: float) -> dict:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(case, repo, only, theirs), daemon=True)
    begin = time.monotonic()
    process.start()
    theirs.close()
    fact = {"name": case[0], "model_type": case[1], "verdict": "died", "reason": ""}
    try:
        if ours.poll(timeout):
            fact = ours.recv()
        else:
            fact |= {"verdict": "timeout", "reason": f"no result after {timeout:.0f} s"}
    except EOFError:
        process.join(5)
        fact["reason"] = f"the process ended with {process.exitcode}"
    if process.is_alive():
        process.join(3)
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    fact["seconds"] = round(time.monotonic() - begin, 1)
    return fact


def table(facts: list[dict]) -> str:
    columns = ("emb", "text", "kv", "long", "grad", "gen", "train", "move", "serve")
    lines = ["| architecture | verdict | " + " | ".join(columns) + " | reason |", "|" + "---|" * (len(columns) + 3)]
    for fact in facts:
        cells = [str(fact.get(column, "")).partition(":")[0].partition(" (")[0][:12] for column in columns]
        reason = str(fact.get("reason", "")).replace("|", "/")[:220]
        lines.append(f"| {fact['name']} | {fact['verdict']} | " + " | ".join(cells) + f" | {reason} |")
    return "\n".join(lines)


def proven(fact: dict) -> dict:
    """What users want to know of an architecture."""
    exact = fact["verdict"] in ("exact", "exact*")
    taken = {"embedding": True, "kv": fact.get("takes_kv"), "state": fact.get("takes_states")}
    forms = ", ".join(form for form, takes in taken.items() if takes) if exact else ""
    sites = fact.get("kv_sites", ())
    if exact and 0 < len(sites) < 3:
        forms += f" ({', '.join(sites)})"
    engine = {"ok": "yes"}.get(str(fact.get("serve", "")), "")
    reason = "" if exact else str(fact.get("reason", "")).partition(" @ ")[0][:160]
    return {
        "architecture": fact["name"],
        "exact": exact,
        "path": str(fact.get("path", "")) if exact else "",
        "prompts": forms,
        "engine": engine,
        "note": fact["verdict"] + ": " + reason if reason else "",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", default=[], help="names of architectures")
    parser.add_argument("--kinds", default="causal,seq2seq,vision,variants")
    parser.add_argument("--checks", default="", help="some of emb,text,kv,long,grad,gen,train,move,serve")
    parser.add_argument("--out", help="a line of JSON for each architecture")
    parser.add_argument("--table", help="a Markdown table")
    parser.add_argument("--proven", help="the list that `softprompt models --proven` shows")
    parser.add_argument("--timeout", type=float, default=300)
    given = parser.parse_args()
    repo = REPO
    warnings.simplefilter("ignore")

    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    chosen = cases(set(given.kinds.split(",")))
    if given.only:
        wanted = set(given.only)
        chosen = [case for case in chosen if case[0] in wanted or case[1] in wanted]
    facts = []
    out = open(given.out, "a") if given.out else None
    for case in chosen:
        fact = run_one(case, repo, set(filter(None, given.checks.split(","))), given.timeout)
        facts.append(fact)
        print(
            f"{fact['name']:32} {fact['verdict']:10} {fact['seconds']:6.1f}s {str(fact.get('reason', ''))[:150]}",
            flush=True,
        )
        if given.only:
            print(json.dumps(fact, indent=1))
        if out:
            out.write(json.dumps(fact) + "\n")
            out.flush()
    counts: dict[str, int] = {}
    for fact in facts:
        counts[fact["verdict"]] = counts.get(fact["verdict"], 0) + 1
    print(counts)
    if given.proven:
        Path(given.proven).write_text(json.dumps([proven(fact) for fact in facts], indent=0) + "\n")
    if given.table:
        Path(given.table).write_text(table(facts) + "\n")


if __name__ == "__main__":
    main()
