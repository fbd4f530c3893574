"""Makes the pairs of this example: python -m examples.preferences.make_data

Questions with one short answer. Chosen is the answer alone; rejected is the same answer in many words. The entities of
training, validation and test differ, so what is learned is the form and not the answers.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

FOLDER = Path(__file__).parent
SIZES = {"train": 144, "validation": 32, "test": 40}

CAPITALS = (
    "France Paris, Italy Rome, Spain Madrid, Japan Tokyo, Germany Berlin, Austria Vienna, Greece Athens, Egypt Cairo, "
    "Norway Oslo, Poland Warsaw, Ireland Dublin, Portugal Lisbon, Cuba Havana, Peru Lima, Kenya Nairobi, Chile "
    "Santiago, Hungary Budapest, Sweden Stockholm, Finland Helsinki, Denmark Copenhagen, Thailand Bangkok, Canada "
    "Ottawa, Russia Moscow, China Beijing, Iran Tehran, Iraq Baghdad, Belgium Brussels, Turkey Ankara, Ukraine Kyiv, "
    "Syria Damascus"
)
OPPOSITES = (
    "hot cold, big small, fast slow, high low, light dark, early late, hard soft, rich poor, young old, happy sad, "
    "open closed, full empty, strong weak, clean dirty, wet dry, loud quiet, near far, thick thin, true false, up "
    "down, left right, good bad, first last, long short, deep shallow, heavy light, rough smooth, sharp blunt, safe "
    "dangerous, wide narrow"
)
COLORS = (
    "grass green, snow white, coal black, blood red, bananas yellow, milk white, tomatoes red, leaves green, lemons "
    "yellow, ravens black, strawberries red, frogs green, salt white, night black, chocolate brown, soil brown, "
    "carrots orange, cherries red, cucumbers green, clouds white"
)
YOUNG = (
    "dog puppy, cat kitten, cow calf, horse foal, sheep lamb, pig piglet, goat kid, duck duckling, bear cub, deer "
    "fawn, goose gosling, kangaroo joey, lion cub, hen chick, swan cygnet, eagle eaglet, whale calf, wolf pup, frog "
    "tadpole, owl owlet"
)
WORDY = (
    "That is a great question! The answer you are looking for is {answer}. Let me know if there is anything else.",
    "Well, let me think about this for a moment. I would say that it is {answer}, although there is more to it.",
    "The answer to the question is {answer}. This is something that many people like to know, and I hope it helps.",
    "Sure, I can help with that. As far as I know it is {answer}. Is there anything else that you would like to ask?",
    "There are several ways to answer this. In short, it is {answer}, and you can read more about it in any good book.",
)


def questions() -> Iterator[tuple[str, str]]:
    """Every question with its answer."""
    for table, texts in (
        (CAPITALS, ("What is the capital of {}?", "Which city is the capital of {}?")),
        (OPPOSITES, ("What is the opposite of {}?", "Give me a word that means the opposite of {}.")),
        (COLORS, ("What color is {}?",)),
        (YOUNG, ("What is a young {} called?",)),
    ):
        for entry in table.split(", "):
            given, answer = entry.rsplit(" ", 1)
            for text in texts:
                is_many = table is COLORS and given.endswith("s") and given != "grass"
                yield (text.replace(" is ", " are ") if is_many else text).format(given), answer
    for first in range(2, 20):
        for second in (3, 5, 8, 11):
            yield f"How much is {first} plus {second}?", str(first + second)


def main(folder: Path = FOLDER) -> None:
    draw = random.Random(0)  # noqa: S311 - data of an example
    by_answer: dict[str, list[dict[str, str]]] = {}
    for question, answer in questions():
        rejected = draw.choice(WORDY).format(answer=answer)
        by_answer.setdefault(answer, []).append({"prompt": question, "chosen": answer, "rejected": rejected})
    answers = sorted(by_answer)
    draw.shuffle(answers)
    for name, size in SIZES.items():
        rows: list[dict[str, str]] = []
        while len(rows) < size:
            rows += by_answer[answers.pop()]
        draw.shuffle(rows)
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[:size]), encoding="utf-8")


if __name__ == "__main__":
    main()
