"""Transformers' `Trainer` and TRL's trainers train a soft prompt, with nothing adapted to it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments

from softprompt.formatting.formatted_prompt import from_card
from softprompt.inference.generate import Request, generate
from softprompt.inference.sampling import Sampling
from softprompt.modeling.soft_prompt_model import SoftPromptModel
from softprompt.models.frozen_lm import FrozenLM
from softprompt.prompts import store
from tests.support.cases import text_ids
from tests.support.saved import save_tiny
from tests.support.tiny import DEVICE, tiny_lm, tiny_model, tiny_tokenizer

pytestmark = [
    # of these libraries, not of ours
    pytest.mark.filterwarnings("ignore::FutureWarning:(trl|transformers|accelerate|datasets|torch)"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:(trl|transformers|accelerate|datasets|torch)"),
    pytest.mark.filterwarnings("ignore::UserWarning:(trl|transformers|accelerate|datasets|torch)"),
]
COMMON: dict[str, Any] = {
    "report_to": [],
    "use_cpu": DEVICE == "cpu",
    "disable_tqdm": True,
    "learning_rate": 0.3,
    "lr_scheduler_type": "constant",
    "logging_steps": 1,
    "bf16": False,
}
METHODS = ({"name": "prompt-tuning", "n_tokens": 6}, {"name": "prefix-tuning", "n_tokens": 6})


def live(lm: FrozenLM | None = None, method: int = 0, **options: Any) -> SoftPromptModel:
    return SoftPromptModel.from_method(lm or tiny_lm(), METHODS[method], **options)


def losses(trainer: Any) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def rows(count: int) -> list[dict[str, list[int]]]:
    """Random bytes behind which the same three tokens come."""
    made = []
    for i in range(count):
        given = text_ids(2 + i % 5, i)
        made.append({"input_ids": [*given, 70, 81, 92], "labels": [-100] * len(given) + [70, 81, 92]})
    return made


def collate(batch: list[dict[str, list[int]]], side: str = "left") -> dict[str, torch.Tensor]:
    width = max(len(row["input_ids"]) for row in batch)

    def padded(values: list[int], fill: int) -> list[int]:
        more = [fill] * (width - len(values))
        return more + values if side == "left" else values + more

    return {
        "input_ids": torch.tensor([padded(row["input_ids"], 0) for row in batch]),
        "labels": torch.tensor([padded(row["labels"], -100) for row in batch]),
        "attention_mask": torch.tensor([padded([1] * len(row["input_ids"]), 0) for row in batch]),
    }


def test_transformers_trainer(tmp_path: Path) -> None:
    """It learns, keeps its best checkpoint, resumes from one, and a checkpoint is an artifact."""

    def train(model: SoftPromptModel, steps: int, *, resume: bool = False, **options: Any) -> Trainer:
        arguments = TrainingArguments(
            str(tmp_path / "run"), max_steps=steps, save_steps=4, per_device_train_batch_size=4, **COMMON, **options
        )
        data: Any = rows(32)
        trainer = Trainer(
            model,
            arguments,
            train_dataset=data,
            eval_dataset=data,
            data_collator=collate,
        )
        trainer.train(resume_from_checkpoint=resume or None)
        return trainer

    options = {"eval_strategy": "steps", "eval_steps": 4, "load_best_model_at_end": True}
    whole = train(live(), 8, **options)
    assert losses(whole)[-1] < losses(whole)[0] - 1
    assert whole.evaluate()["eval_loss"] == min(
        line["eval_loss"] for line in whole.state.log_history if "eval_loss" in line
    )
    checkpoint = tmp_path / "run" / "checkpoint-8"
    (prompt, card), model = store.load(checkpoint, tiny_lm().geometry), whole.model
    assert (card.name, card.method["name"]) == ("checkpoint-8", "prompt-tuning")
    assert isinstance(model, SoftPromptModel)
    assert_close(prompt.tensors(), model.model.live().freeze().tensors())
    resumed = train(live(seed=5), 10, resume=True)
    straight = train(live(), 10)
    assert_close(losses(resumed)[-2:], losses(straight)[-2:], rtol=1e-4, atol=1e-4)


def test_sides_and_parts_of_a_batch_make_no_difference(tmp_path: Path) -> None:
    """One step: left or right padding, with gradient checkpointing, in two parts of the batch."""
    results = list[torch.Tensor]()
    variants: list[dict[str, Any]] = [
        {"per_device_train_batch_size": 4},
        {"per_device_train_batch_size": 4, "activation_checkpointing": True},
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2},
    ]
    for i, options in enumerate(variants):
        model = live(method=1, seed=2)
        arguments = TrainingArguments(
            str(tmp_path / str(i)), max_steps=1, save_strategy="no", optim="sgd", max_grad_norm=0, **COMMON, **options
        )
        collator: Any = functools.partial(collate, side="left" if i else "right")
        data: Any = rows(4)
        Trainer(model, arguments, train_dataset=data, data_collator=collator).train()
        results.append(model.model.live().matrix().detach())
    for other in results[1:]:
        assert_close(other, results[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"loss_type": "nll"}, {"packing": True, "max_length": 64}])
def test_trl_sft(options: dict[str, Any], tmp_path: Path) -> None:
    """Conversations, with TRL's default loss, its plain one, and packed; the result answers as it was trained."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportPrivateImportUsage]

    turns = [
        {"prompt": [{"role": "user", "content": f"{i}?"}], "completion": [{"role": "assistant", "content": "ok"}]}
        for i in range(16)
    ]
    model = live(method=1)
    arguments = SFTConfig(str(tmp_path), max_steps=6, per_device_train_batch_size=4, **COMMON, **options)
    trainer = SFTTrainer(model, arguments, train_dataset=Dataset.from_list(turns), processing_class=tiny_tokenizer())
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0] - 1
    trainer.save_model(str(tmp_path / "tone"))
    prompt, card = store.load(tmp_path / "tone", model.lm.geometry)
    (answer,) = generate(model.lm, {"t": from_card(prompt, card)}, [Request("3?", "t")], Sampling(max_new_tokens=4))
    ids: Any = tiny_tokenizer().apply_chat_template(
        [{"role": "user", "content": "3?"}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    model.eval()
    wanted = model.generate(**ids, max_new_tokens=4, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert answer.ids and wanted.tolist()[: len(answer.ids)] == list(answer.ids)


@pytest.mark.parametrize("given", [True, False])
def test_trl_dpo(given: bool, tmp_path: Path) -> None:
    """The reference is the base model alone: the same weights, or the ones that TRL loads by the base's name."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer  # pyright: ignore[reportPrivateImportUsage]

    base = save_tiny(tmp_path / "base")
    lm = FrozenLM(type(tiny_model("llama")).from_pretrained(base), tiny_tokenizer(), str(base))
    model = live(lm)
    pairs = [{"prompt": f"{i}?", "chosen": " ok", "rejected": " no"} for i in range(8)]
    arguments = DPOConfig(str(tmp_path / "run"), max_steps=6, per_device_train_batch_size=4, beta=0.5, **COMMON)
    trainer = DPOTrainer(
        model,
        model.get_base_model() if given else None,
        arguments,
        train_dataset=Dataset.from_list(pairs),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]
    margins = [line["rewards/margins"] for line in trainer.state.log_history if "rewards/margins" in line]
    assert margins[-1] > margins[0]
    for ours, before in zip(lm.hf_model.parameters(), tiny_model("llama").parameters(), strict=True):
        assert torch.equal(ours, before)


def test_trl_grpo(tmp_path: Path) -> None:
    """A reward for one letter: sampled by the model, and more of it with every step."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportPrivateImportUsage]

    def reward(completions: list[str], **_: Any) -> list[float | None]:
        return [float(sum(letter.islower() for letter in text)) for text in completions]

    model = live(method=1)
    before = model.model.live().matrix().detach()
    arguments = GRPOConfig(
        str(tmp_path),
        max_steps=3,
        per_device_train_batch_size=8,
        num_generations=8,
        max_completion_length=6,
        save_strategy="no",
        **COMMON,
    )
    trainer = GRPOTrainer(
        model,
        reward,
        arguments,
        train_dataset=Dataset.from_list([{"prompt": f"{i}?"} for i in range(8)]),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    rewards = [line["reward"] for line in trainer.state.log_history if "reward" in line]
    assert len(rewards) == 3
    assert not torch.equal(model.model.live().matrix(), before)
