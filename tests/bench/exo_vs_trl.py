"""EXO on pairs, here and in TRL: ``python tests/bench/exo_vs_trl.py [--model DIR] [--rows 48] [--pairs 3]``.

``exo-pref``, K = 2, against TRL's ``DPOTrainer(loss_type="exo_pair")``: same model, token ids, batches in the same
order, epsilon, betas, learning rate. Once with the reference model in the loop on both sides, once with its log-probs
precomputed on both sides (the precomputation is not in the step times; the wall times hold it). The optimizers differ
in one thing: OpenRLHF's DeepSpeed keeps float32 master weights beside bf16, TRL in pure bf16 does not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from common import ROOT, Run, interleave, ratio, run, scalar_events, small_llama, spread

MICRO = 4
SEED = 42
THREADS = {"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))), "OMP_WAIT_POLICY": "PASSIVE"}


def parse(description: str | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", type=Path, help="a Hugging Face folder (default: a random Llama, 17M)")
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--pairs", type=int, default=3)
    return parser.parse_args()


def prepare(model: Path, path: Path, rows: int) -> tuple[int, list[list[list[int]]]]:
    """Write ``rows`` pairs of the bundled sample; returns the number of tokens in them, and their ids."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    marker = "\n\nAssistant:"
    ids = []
    with path.open("w") as stream:
        for line in (ROOT / "data_builders/samples/hh/train.jsonl").read_bytes().splitlines()[:rows]:
            record = json.loads(line)
            cut = record["chosen"].rindex(marker) + len(marker)
            row = {"prompt": record["chosen"][:cut]} | {side: record[side][cut:] for side in ("chosen", "rejected")}
            stream.write(json.dumps(row) + "\n")
            prompt, *answers = (
                tokenizer(row[key], add_special_tokens=False)["input_ids"] for key in ("prompt", "chosen", "rejected")
            )
            ids.append([[*prompt, *answer, tokenizer.eos_token_id] for answer in answers])
    return sum(len(side) for pair in ids for side in pair), ids


def main() -> None:
    """Measure and print."""
    args = parse(__doc__)
    with tempfile.TemporaryDirectory() as temporary:
        args.model = args.model or small_llama(Path(temporary))
        data = Path(temporary) / "pairs.jsonl"
        tokens, ids = prepare(args.model.resolve(), data, args.rows)
        print(f"{args.rows} pairs, {tokens} tokens, micro batch {MICRO}, {args.model.name}")
        for precomputed in (False, True):

            def ours(out: Path, precomputed: bool = precomputed) -> Run:
                flags = [
                    *("--model.model_name_or_path", args.model.resolve(), "--data.dataset", data),
                    *("--ref.model_name_or_path", args.model.resolve(), "--data.max_len", "256"),
                    *("--train.batch_size", MICRO, "--train.micro_batch_size", MICRO, "--train.seed", SEED),
                    *("--adam.lr", "1e-6", "--lr_scheduler", "constant", "--lr_warmup_ratio", "0"),
                    *("--exo.loss_type", "exo-pref", "--exo.temperature", "1", "--exo.epsilon", "1e-3"),
                    *("--exo.beta_pi", "0.5", "--exo.beta_r", "0.5", "--logger.tensorboard_dir", out / "tb"),
                    *("--ckpt.output_dir", out / "model", "--ckpt.path", out / "ckpt"),
                    *(("--exo.cache_reference", out / "cache") if precomputed else ()),
                ]
                return run(
                    [sys.executable, "-m", "orlhf_ext.launch", "train_dpo", "--ext.use", "exo", *flags], out, **THREADS
                )

            def theirs(out: Path, precomputed: bool = precomputed) -> Run:
                script = Path(__file__).parent / "trl_side.py"
                words = [sys.executable, script, args.model.resolve(), data, out, MICRO, int(precomputed), SEED]
                done = run(words, out, **THREADS)
                result = json.loads((out / "trl.json").read_text())
                assert result["ids"] == [ids[i] for i in result["order"]], "TRL trained on other token ids"
                return Run(done.wall, result["steps"][1:], done.peak_mib, out)

            losses = []

            def keep(side, name: str, losses: list = losses):  # the folders are gone when interleave returns
                def kept(out: Path) -> Run:
                    done = side(out)
                    if name == "ours":
                        first = [event.value for event in scalar_events(out / "tb", "train/loss")]
                    else:
                        first = json.loads((out / "trl.json").read_text())["losses"]
                    losses.append((name, first))
                    return done

                return kept

            pairs = interleave(keep(ours, "ours"), keep(theirs, "trl"), args.pairs)
            print("reference precomputed on both sides:" if precomputed else "reference in the loop on both sides:")
            first = {name: values for name, values in losses}
            print(f"  losses, ours: {[round(x, 4) for x in first['ours']]}")
            print(f"  losses, TRL:  {[round(x, 4) for x in first['trl']]}")
            assert abs(first["ours"][0] - first["trl"][0]) < 1e-2, "the first steps' losses differ"
            per_step = tokens / (args.rows // MICRO)
            for name, side in (("ours", 0), ("TRL", 1)):
                spread(f"  {name}, tokens/s", [per_step / pair[side].step for pair in pairs], "tok/s")
                spread(f"  {name}, whole process", [pair[side].wall for pair in pairs], "s")
                spread(f"  {name}, peak memory", [pair[side].peak_mib for pair in pairs], "MiB")
            ratio("  tokens/s, ours / TRL", [b.step / a.step for a, b in pairs])


if __name__ == "__main__":
    main()
