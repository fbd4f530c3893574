"""Makes the questions of this example: python -m examples.reward.make_data

Rows are prompts alone: there are no answers to learn from.
"""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

FOLDER = Path(__file__).parent
SIZES = {"train": 160, "validation": 16, "test": 32}
FRAMES = ("What is {}?", "Tell me about {}.", "Why do people like {}?", "How would you explain {} to a child?")
TOPICS = (
    "the moon, a river, bread, music, winter, a library, football, tea, the ocean, a garden, chess, the sun, a "
    "bicycle, rain, cheese, a museum, trains, honey, the desert, a forest, paper, salt, dreams, a bridge, coffee, "
    "stars, snow, gold, a clock, the wind, painting, apples, a lighthouse, history, birds, a volcano, glass, maps, "
    "soup, mountains, dogs, a candle, money, islands, dancing, books, a school, thunder, silk, an orchestra, farming, "
    "the internet"
)


def main(folder: Path = FOLDER) -> None:
    draw = random.Random(0)  # noqa: S311 - data of an example
    topics = TOPICS.split(", ")
    draw.shuffle(topics)
    pairs = [(topic, frame) for topic, frame in itertools.product(topics, FRAMES)]
    for name, size in SIZES.items():
        rows, pairs = pairs[:size], pairs[size:]
        draw.shuffle(rows)
        lines = [json.dumps({"prompt": frame.format(topic)}) + "\n" for topic, frame in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
