"""A launcher run as a whole, and again from some of its checkpoints, all in this process.

``python resume_runs.py OUT STEPS LAUNCHER [flags]``: OUT/whole is the run as a whole, OUT/STEP the one from that
step on, with ``model`` and the checkpoints in each. STEPS are numbers, divided by commas.
"""

from __future__ import annotations

import runpy
import shutil
import sys
from pathlib import Path

import torch.distributed as dist

from orlhf_ext.extensions.releases import LAUNCHERS
from orlhf_ext.launch.launcher import main as launch


def folders(out: Path) -> list[str]:
    """The flags that say where a run writes."""
    return ["--ckpt.output_dir", str(out / "model"), "--ckpt.path", str(out / "ckpt")]


def main(out: Path, steps: list[int], launcher: str, words: list[str]) -> None:
    words = [*words, "--ckpt.save_steps", "1", "--ckpt.max_num", "99", "--ds.attn_implementation", "sdpa"]
    launch([launcher, *words, *folders(out / "whole")])
    own = {"ext", "exo", "groups", "deadend"}
    theirs = [i for i, word in enumerate(words) if word.startswith("--") and word[2:].partition(".")[0] not in own]
    ends = [*[i for i, word in enumerate(words) if word.startswith("--")], len(words)]
    stock = [word for i in theirs for word in words[i : ends[ends.index(i) + 1]]]
    for step in steps:
        again = out / str(step)
        dist.barrier()  # all ranks have written theirs
        if dist.get_rank() == 0:
            shutil.copytree(out / f"whole/ckpt/global_step{step}", again / f"ckpt/global_step{step}")
            (again / "ckpt/latest").write_text(f"global_step{step}")
        dist.barrier()
        sys.argv = [launcher, *stock, *folders(again), "--ckpt.load_enable"]
        runpy.run_module(LAUNCHERS[launcher], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(step) for step in sys.argv[2].split(",")], sys.argv[3], sys.argv[4:])
