"""The obvious way to build Jigsaw's data, as the upstream project does it: the other side of `jigsaw_builders`.

``python tests/bench/jigsaw_upstream.py reward|prompts CSV OUT [TOKENIZER]``: pandas reads the whole file, a loop goes
over its rows, and each comment that is kept is encoded whole, on its own.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path


def build_reward(source: str, out: Path, drop_rate: float = 0.3) -> None:
    """Write ``rm_train.json`` and ``rm_valid.json``."""
    import pandas as pd

    random.seed(0)
    frame = pd.read_csv(source)
    with open(out / "rm_train.json", "w") as train, open(out / "rm_valid.json", "w") as valid:
        for _, row in frame.iterrows():
            if row["toxic"] == 0 and random.random() <= drop_rate:
                continue
            stream = valid if random.random() <= 0.1 else train
            record = {"text": row["comment_text"], "label": int(row["toxic"])}
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")


def build_prompts(source: str, out: Path, tokenizer_file: str, drop_rate: float = 0.9, max_len: int = 20) -> None:
    """Write ``prompts.jsonl``."""
    import pandas as pd
    from transformers import PreTrainedTokenizerFast

    random.seed(0)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=tokenizer_file, clean_up_tokenization_spaces=False)
    frame = pd.read_csv(source)
    with open(out / "prompts.jsonl", "w") as stream:
        for number, row in frame.iterrows():
            if row["target"] < 0.5 and random.random() <= drop_rate:
                continue
            try:
                text = tokenizer.decode(tokenizer.encode(row["comment_text"], add_special_tokens=False)[:max_len])
            except Exception:
                print(f"row {number} is left out")
                continue
            stream.write(json.dumps({"prompt": {"text": text}}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    step, csv_file, folder, *rest = sys.argv[1:]
    {"reward": build_reward, "prompts": build_prompts}[step](csv_file, Path(folder), *rest)
