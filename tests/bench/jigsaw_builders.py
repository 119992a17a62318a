"""How fast the builder of Jigsaw's data is: ``python tests/bench/jigsaw_builders.py [--rows 1800000] [--rounds 3]``

The steps ``prompts`` and ``reward`` on generated CSV files in the columns of the two competitions, against the obvious
way with pandas and a tokenizer for each row (`jigsaw_upstream`), in turn. Both sides must write the same bytes. Told
are rows per second with imports and start, their ratio, and the peak memory of the process, for ours at a tenth of the
rows as well. The aims: 10 times as many rows per second, and at most 500 MB whatever the size.

Comments are drawn words of English, 50 on average, some with commas, quotes, line breaks or letters with accents.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import multiprocessing
import random
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import ROOT, Run, interleave, ratio, run, spread

FILES = {"prompts": ("prompts.jsonl",), "reward": ("rm_train.json", "rm_valid.json")}
#: what follows the comment in a row of the Unintended Bias data
REST = [
    *["0.0"] * 5,
    *[""] * 24,
    "2016-11-05 10:50:41.987077+00",
    "21",
    "",
    "13200",
    "rejected",
    *["0"] * 6,
    "0.0",
    "0",
    "4",
]
LABELS = ["toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate"]


def make_csv(path: Path, step: str, rows: int) -> Path:
    """Write a CSV file in the shape of a competition's training file."""
    generator = random.Random(0)
    words = word_pool(generator)
    with path.open("w", newline="", encoding="utf-8") as stream:
        out = csv.writer(stream, lineterminator="\n")
        if step == "prompts":
            out.writerow(["id", "target", "comment_text", *(f"column_{number}" for number in range(len(REST)))])
        else:
            out.writerow(["id", "comment_text", *LABELS])
        for number in range(rows):
            text = make_comment(words, generator)
            toxic = generator.random()
            if step == "prompts":
                target = "0.0" if toxic < 0.7 else str(round(0.2 + (toxic - 0.7) * 1.3, 6) if toxic < 0.92 else 0.8)
                out.writerow([59848 + number, target, text, *REST])
            else:
                out.writerow([f"{number:016x}", text, int(toxic < 0.1), 0, 0, 0, int(toxic < 0.05), 0])
    return path


def word_pool(generator: random.Random) -> list[str]:
    """Half a million words with the frequencies of this project's own sample stories."""
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "data_builders/samples/stories").glob("*.txt")]
    words = [word for text in sorted(texts) for word in re.findall(r"[A-Za-z]+(?:'[a-z]+)?", text)]
    rare = ["".join(generator.choices("aeiourstlnmdgbk", k=generator.randint(4, 11))) for _ in range(30_000)]
    return [*generator.choices(words, k=480_000), *generator.choices(rare, k=20_000)]


def make_comment(words: list[str], generator: random.Random) -> str:
    """A comment of 1 to 200 words, cut from the pool at random places."""
    left, sentences = min(200, 1 + int(generator.lognormvariate(3.5, 0.9))), []
    while left > 0:
        size = min(left, generator.randint(3, 18))
        start = generator.randrange(len(words) - size)
        sentence = words[start : start + size]
        if generator.random() < 0.3:
            sentence[size // 2] += generator.choice([",", ";", ' "so"', " -", " 2017", " café", " \u2019tis"])
        sentences.append(" ".join(sentence).capitalize() + generator.choice(".....!?"))
        left -= size
    breaks = itertools.cycle([" "] * generator.randint(2, 9) + [generator.choice(["\n", "\n\n", "  "])])
    return "".join(itertools.chain.from_iterable(zip(sentences, breaks, strict=False))).strip()


def ours(step: str, source: Path, tokenizer: Path, out: Path) -> Run:
    """Run the builder."""
    cut = ["--tokenizer", tokenizer] if step == "prompts" else []
    command = ["-m", "orlhf_ext.build_data", "jigsaw", step, "-f", source, "-s", out / "data", *cut]
    return run([sys.executable, *command], out, TOKENIZERS_PARALLELISM="false")


def theirs(step: str, source: Path, tokenizer: Path, out: Path) -> Run:
    """Run the obvious way."""
    (out / "data").mkdir(parents=True)
    script = Path(__file__).with_name("jigsaw_upstream.py")
    cut = [tokenizer] if step == "prompts" else []
    return run([sys.executable, script, step, source, out / "data", *cut], out, TOKENIZERS_PARALLELISM="false")


def measure(
    step: str, sizes: tuple[int, int], rounds: int, tokenizer: Path, folder: Path
) -> tuple[list[tuple[Run, Run]], Run]:
    """The pairs of runs of one step at our and their number of rows, and ours at a tenth."""
    sources = []
    for size in (*sizes, max(sizes[0] // 10, 1)):
        sources.append(folder / f"{step}_{size}.csv")
        in_a_child(make_csv, sources[-1], step, size)
    print(f"{step}: {sizes[0]} rows, {sources[0].stat().st_size / 2**20:.0f} MiB", flush=True)

    def upstream(out: Path) -> Run:
        return theirs(step, sources[1], tokenizer, out)

    pairs = interleave(lambda out: ours(step, sources[0], tokenizer, out), upstream, rounds)
    return pairs, ours(step, sources[2], tokenizer, folder / f"{step}_less")


def hold_equal(step: str, source: Path, tokenizer: Path, folder: Path) -> None:
    """Hold that both sides write the same bytes."""
    for side in (ours, theirs):
        side(step, source, tokenizer, folder / side.__name__)
    for name in FILES[step]:
        one, other = (folder / side.__name__ / "data" / name for side in (ours, theirs))
        if one.read_bytes() != other.read_bytes():
            sys.exit(f"{one} and {other} differ")


def in_a_child(function: Callable[..., Any], *words: object) -> None:
    """Call a function in a process of its own: the peak memory of a child begins with that of its parent."""
    child = multiprocessing.get_context("spawn").Process(target=function, args=words)
    child.start()
    child.join()
    if child.exitcode:
        sys.exit(f"{function.__name__} failed")


def make_tokenizer(path: Path) -> None:
    """Write SmolLM2's tokenizer."""
    from orlhf_ext.models.small_models import find_smollm2_gguf, gguf_tokenizer

    path.write_text(gguf_tokenizer(find_smollm2_gguf())[0].to_str(), encoding="utf-8")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_800_000, help="(%(default)s)")
    parser.add_argument("--upstream_rows", type=int, help="for the other side, which needs an hour for all (the same)")
    parser.add_argument("--rounds", type=int, default=3, help="(%(default)s)")
    parser.add_argument("--steps", nargs="+", choices=FILES, default=list(FILES), help="(both)")
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.json (SmolLM2's)")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    sizes = (args.rows, args.upstream_rows or args.rows)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tokenizer = args.tokenizer or folder / "tokenizer.json"
        if not args.tokenizer:
            in_a_child(make_tokenizer, tokenizer)
        results = {}
        for step in args.steps:
            in_a_child(make_csv, small := folder / f"{step}.csv", step, 20_000)
            hold_equal(step, small, tokenizer, folder / step)
            results[step] = measure(step, sizes, args.rounds, tokenizer, folder)
    for step, (pairs, less) in results.items():
        rates = [(sizes[0] / a.wall, sizes[1] / b.wall) for a, b in pairs]
        print(f"{step}, {sizes[0]} rows ({sizes[1]} for the other side)")
        spread("  ours", [a for a, _ in rates], "rows/s")
        spread("  pandas and a tokenizer for each row", [b for _, b in rates], "rows/s")
        ratio("  ours / theirs, rows per second", [a / b for a, b in rates])
        print(
            f"  peak memory: ours {max(a.peak_mib for a, _ in pairs):.0f} MiB ({less.peak_mib:.0f} MiB at a tenth of "
            f"the rows), theirs {max(b.peak_mib for _, b in pairs):.0f} MiB"
        )


if __name__ == "__main__":
    main()
