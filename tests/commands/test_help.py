"""Every command's help, at once and without a framework."""

from __future__ import annotations

import json

from helpers import ROOT, run_python

CODE = """
import contextlib, importlib, io, json, sys
found = {}
for name in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        importlib.import_module(name).main(["--help"])
    heavy = {"torch", "transformers", "datasets", "ray", "vllm", "deepspeed", "openrlhf", "scipy"} & set(sys.modules)
    found[name] = printed.getvalue(), sorted(heavy)
print(json.dumps(found))
"""
#: what some of them are to name
WORDS = {
    "orlhf_ext.launch.launcher": ("--exo.loss_type", "train_ppo_ray"),
    "orlhf_ext.commands.small_models": ("smollm2",),
    **{f"orlhf_ext.deadend.{name}": ("--toxicity_type",) for name in ("score", "evaluate")},
    "orlhf_ext.groups.em": ("--restarts",),
    **{f"orlhf_ext.commands.{name}": ("--out",) for name in ("generate", "score", "logprobs", "evaluate")},
    **{f"orlhf_ext.vrcli.{name}": ("--out",) for name in ("baseline", "score", "evaluate")},
}


def test_help_loads_nothing_heavy() -> None:
    paths = [path for path in (ROOT / "orlhf_ext").rglob("*.py") if "\ndef main(" in path.read_text(encoding="utf-8")]
    names = sorted(".".join(path.relative_to(ROOT).with_suffix("").parts) for path in paths)
    done = run_python("-c", CODE, *names)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(WORDS) <= set(found) == set(names)
    for name, (printed, heavy) in found.items():
        assert not heavy, (name, heavy)
        assert printed and all(word in printed for word in WORDS.get(name, ())), (name, printed)
