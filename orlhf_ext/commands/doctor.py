"""``orlhf-ext doctor``: what is at every seam, which extensions are installed, and what this machine lacks."""

from __future__ import annotations

import contextlib
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from .. import backends
from ..backends import compiler, machine
from ..cli.errors import UserError, command
from ..cli.flags import Parser
from ..extensions import BUILDERS, EXTENSIONS, REWARDS, extension, inject, load, names, seams
from ..extensions.contracts import Seam, problems
from ..extensions.releases import TESTED
from ..extensions.sources import Sources
from ..launch import ray_setup
from ..launch.flags import make_parser
from ..rewards.extension import Rewards
from ..rewards.selection import choose
from . import releases

#: the oldest driver for which a major version of CUDA is built (NVIDIA's CUDA compatibility guide)
_DRIVERS = {12: 525, 13: 580}
_BY = {"launch": "the launcher joins our flags here", "fix": "OpenRLHF's own, fixed", "import": "OpenRLHF's own"}
#: said of `orlhf_ext.models.prompt_once`, which loads torch
SHARED_WHERE = (
    "with attention eager, sdpa or flash_attention; anew for each with sliding windows that are shorter than a row, "
    "layers of another kind (state-space, chunked), attention that is a model's own, packing, ring attention, and "
    "tensor parallelism"
)
_PACKAGES = ("openrlhf", "torch", "deepspeed", "transformers", "ray", "vllm", "flash-attn", "peft", "trl")


def versions() -> dict[str, str]:
    """The installed versions of what runs depend on; ``vllm`` is also the name of its CPU build here."""
    found = {"python": platform.python_version()}
    for package in ("orlhf-ext", *_PACKAGES):
        for name in (package, f"{package}-cpu") if package == "vllm" else (package,):
            try:
                found[package] = metadata.version(name) + (" (CPU build)" if name.endswith("-cpu") else "")
                break
            except metadata.PackageNotFoundError:
                continue
    return found


@dataclass(frozen=True)
class Machine:
    """What was found here of what a run with GPUs needs."""

    #: an NVIDIA GPU that is not hidden
    device: bool
    #: the driver's version, such as "580.65.06"; None where it cannot be read
    driver: str | None
    #: as `machine.torch_cuda` gives it
    torch_cuda: str | None
    #: as `compiler.choose` gives it; None where no CUDA code is compiled
    compiler: compiler.Choice | None
    flash_attn: bool


def look() -> Machine:
    """This machine."""
    device, built = machine.device_there(), machine.torch_cuda()
    choice = compiler.choose(compiler.to_version(built)) if device and built else None
    return Machine(device, driver_version() if device else None, built, choice, machine.flash_attn_present())


def driver_version(proc: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """The version of NVIDIA's driver, from the kernel or from nvidia-smi; None if neither says it."""
    with contextlib.suppress(OSError):
        if found := re.search(r"Kernel Module\b.*?\s(\d+(?:\.\d+)+)\s", proc.read_text(encoding="utf-8")):
            return found[1]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        words = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        said = subprocess.run(words, capture_output=True, text=True, timeout=30).stdout.split()
        return said[0] if said and re.fullmatch(r"\d+(\.\d+)+", said[0]) else None
    return None


def lacks_for_gpus(machine: Machine) -> list[str]:
    """What a run with GPUs lacks on a machine, each with what follows from it."""
    lacks = []
    if not machine.device:
        lacks.append("a CUDA device: launchers run through the CPU backend")
    elif machine.torch_cuda == "":
        lacks.append(
            "CUDA in torch: there is a GPU, and torch is a build for CPUs, on which all would run; install "
            "requirements-gpu.txt where pip is not told to look for other wheels (pip config list, PIP_FIND_LINKS)"
        )
    elif machine.torch_cuda:
        needed = _DRIVERS.get(compiler.to_version(machine.torch_cuda)[0], 0)
        if machine.driver is not None and int(machine.driver.partition(".")[0]) < needed:
            lacks.append(
                f"a driver of version {needed} or newer: torch with CUDA {machine.torch_cuda} finds no GPU with "
                f"{machine.driver}; update it"
            )
        if machine.compiler is not None and machine.compiler.home is None:
            lacks.append(
                f"a CUDA {machine.torch_cuda} compiler ({machine.compiler.why_not}): torch's AdamW replaces "
                "DeepSpeed's, and vLLM samples without FlashInfer; install requirements-gpu.txt, g++, or set CUDA_HOME"
            )
    if not machine.flash_attn:
        lacks.append("flash-attn: attention runs as sdpa; packing and ring attention are refused")
    return lacks


def missing() -> list[str]:
    """What this machine lacks, each with what follows from it."""
    found = versions()
    lacks = []
    if "openrlhf" not in found:
        lacks.append("OpenRLHF: nothing can be launched; run `bash recipes/setup.sh`")
    elif found["openrlhf"] not in TESTED:
        lacks.append(f"tests: OpenRLHF {found['openrlhf']} is none of those that were tried ({', '.join(TESTED)})")
    lacks += lacks_for_gpus(look())
    if "vllm" not in found:
        lacks.append("vLLM: orlhf-ext generate needs --backend hf, and train_ppo_ray cannot run")
    return lacks


def inspect_seams(swaps: list[inject.Swap]) -> list[tuple[Seam, str, list[str]]]:
    """For every seam: what is there once the swaps are installed, and which parts of its contract are broken."""
    sources = Sources()
    broken = {seam.target: problems(seam, sources) for seam in seams.SEAMS}
    planned = {swap.seam: swap for swap in swaps}
    rows = []
    for seam in seams.SEAMS:
        current = "OpenRLHF's own" if seam.target.startswith("openrlhf") else "the library's own"
        if seam.by != "extension":
            current = _BY.get(seam.by, f"the {seam.by} backend")
            if seam.by == "cpu" and machine.gpu_present():
                current = "the original (there is a CUDA device)"
            if seam.by == "no-flash-attn" and machine.flash_attn_present():
                current = "the original (flash-attn is there)"
        if swap := planned.pop(seam.target, None):
            current = f"{swap.by} (extension {swap.owner})"
        rows.append((seam, current, broken[seam.target]))
    for target, swap in planned.items():  # a seam of the user's own
        wrong = []
        try:
            load(target)
        except UserError as error:
            wrong.append(str(error))
        own = Seam(target, (), "", "not in our table: without a contract")
        rows.append((own, f"{swap.by} (extension {swap.owner})", wrong))
    return rows


def _in_a_worker(swaps: list[inject.Swap], targets: list[str]) -> tuple[dict[str, str], list[str]]:
    """What is at the seams in a worker of a Ray that is started (or joined) for this, and the swaps missing there."""
    import ray

    inject.to_environment(swaps)
    ray_setup.start(swaps, gpus=1)
    try:
        found = ray.get(ray.remote(ray_setup.objects_at).remote([*targets, *(swap.by for swap in swaps)]))
    finally:
        ray.shutdown()
    return found, [swap.seam for swap in swaps if found[swap.seam] != found[swap.by]]


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Print versions, what is missing, extensions, and the table of seams; exit code 1 if a contract is broken, or a
    replacement is not in a Ray worker."""
    parser = Parser(prog="orlhf-ext doctor", description=__doc__)
    parser.add_argument("--ext.use", dest="use", action="append", default=[], metavar="NAME")
    parser.add_argument("--ext.reward", dest="reward", action="append", default=[], metavar="SPEC")
    words = "a version (downloaded), a wheel or a folder: whether it fits, without installing it; nothing else is done"
    parser.add_argument("--openrlhf", metavar="RELEASE", help=words)
    parser.add_argument("--ray", action="store_true", help="start a local Ray, and look into one of its workers, too")
    args = parser.parse_args(argv)
    from rich.console import Console

    console = Console(width=max(140, shutil.get_terminal_size().columns))
    if args.openrlhf:
        if not releases.report(args.openrlhf, console):
            raise SystemExit(1)
        return
    extensions = [extension(name) for name in args.use]
    if args.reward:
        extensions.append(Rewards(choose(args.reward)))
    swaps = inject.plan(extensions)
    make_parser(extensions)

    from rich.table import Table

    console.print("  ".join(f"{name} {version}" for name, version in versions().items()))
    for lack in missing():
        console.print(f"missing here: {lack}")
    for group in (EXTENSIONS, REWARDS, BUILDERS):
        installed = ", ".join(f"{name} ({value})" for name, value in sorted(names(group).items())) or "none"
        console.print(f"{group.rsplit('.', 1)[-1]}: {installed}")
    console.print(f"prompts are computed once for all completions {SHARED_WHERE}")
    if "openrlhf" not in versions():
        raise UserError("OpenRLHF is not installed, so there are no seams to look at; run `bash recipes/setup.sh`")
    backends.install()  # replacements import OpenRLHF, which imports what a backend stands in for
    rows = inspect_seams(swaps)
    for swap in swaps:
        load(swap.by)
    table = Table()
    worker, lost = _in_a_worker(swaps, [seam.target for seam, *_ in rows]) if args.ray else ({}, [])
    titles = ["in the driver", "in a Ray worker"] if args.ray else ["now"]
    for title in ("seam", "launchers", *titles, "contract"):
        table.add_column(title, overflow="fold")
    broken = 0
    for seam, current, wrong in rows:
        broken += len(wrong)
        there = [worker[seam.target]] if args.ray else []
        table.add_row(seam.target, " ".join(seam.launchers), current, *there, "; ".join(wrong) or "holds")
    console.print(table)
    if broken:
        print(f"{broken} contract(s) broken: this OpenRLHF is not the one that the seams were written for")
    for target in lost:
        print(f"{target} is not replaced in a Ray worker: it has {worker[target]}")
    if broken or lost:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
