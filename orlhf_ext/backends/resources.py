"""What a run asks Ray for, compared with what there is before work begins: Ray itself waits forever for a GPU that
never comes."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from ..cli.errors import UserError

_SHARE = 0.2  # of a GPU, that each of OpenRLHF's models asks for where several share one
_CONTROLLER = 1  # CPU, of OpenRLHF's trainer
_CONNECT_SECONDS = 10.0


def placed_gpus(args: SimpleNamespace) -> int:
    """The GPUs that the models of ``train_ppo_ray`` reserve, each with a CPU: placement groups and single actors."""
    train = args.train
    engines = (args.vllm.num_engines or 0) * args.vllm.tensor_parallel_size
    total = _size(args.actor)
    if args.algo.kl.init_coef > 0 and not (train.colocate_actor_ref or train.colocate_all):
        total += _size(args.ref)
    if not _engines_share(args):
        total += engines
    if train.colocate_all:
        return total
    critic = args.algo.advantage.estimator == "gae"
    if critic:
        total += _size(args.critic)
    if not (args.reward.remote_url or train.agent_func_path or (critic and train.colocate_critic_reward)):
        total += _size(args.reward)
    return total


def free_share(args: SimpleNamespace) -> float:
    """The part of each reserved GPU that is left where all models share them (``--train.colocate_all``); else 0."""
    if not _engines_share(args):
        return 0.0
    critic = args.algo.advantage.estimator == "gae"
    reward = not (args.reward.remote_url or args.train.agent_func_path)
    return 1 - _SHARE * (2 + (args.algo.kl.init_coef > 0) + critic + reward)  # the policy and vLLM, and these


def whole_gpus(parts: Sequence[float]) -> int:
    """How many GPUs hold these parts of one; Ray never spreads a part over two."""
    free: list[float] = []
    for part in sorted(parts, reverse=True):
        if part >= 1:
            free += [0.0] * math.ceil(part)
        elif (place := next((i for i, room in enumerate(free) if room > part - 1e-6), None)) is not None:
            free[place] -= part
        elif part > 0:
            free.append(1 - part)
    return len(free)


def check_part(name: str, gpus: float) -> None:
    """Refuse a part of a GPU that Ray does not give to an actor.
    Raises UserError if it is more than one GPU, and not a whole number."""
    if gpus > 1 and gpus != int(gpus):
        raise UserError(f"reward {name!r} asks for {gpus:g} GPUs, and Ray gives a part of one, or whole ones")


def must_share(args: SimpleNamespace, parts: Sequence[float], gpus: float) -> bool:
    """Whether these parts find no room beside the models' GPUs, of ``gpus`` that there are."""
    return bool(parts) and gpus - placed_gpus(args) < whole_gpus(parts)


def check(args: SimpleNamespace, parts: Mapping[str, Sequence[float]], there: Mapping[str, float]) -> None:
    """Refuse what would wait forever.

    Args:
        args: the launcher's nested arguments.
        parts: for each reward with a model, the part of a GPU of each of its copies.
        there: what Ray has, as ``ray.cluster_resources()`` gives it.

    Raises:
        UserError: the models or the rewards ask for more GPUs, or the run for more CPUs, than there are.
    """
    gpus, cpus, placed = there.get("GPU", 0), there.get("CPU", 0), placed_gpus(args)
    if placed > gpus:
        raise UserError(
            f"the run's models ask for {placed} GPUs, and Ray has {gpus:g}; lower --actor.num_gpus_per_node, "
            "--ref.num_gpus_per_node or --vllm.num_engines, or let them share with --train.colocate_all"
        )
    all_parts = [part for of_one in parts.values() for part in of_one if part]
    sharing = must_share(args, all_parts, gpus)
    if placed + _CONTROLLER + (0 if sharing else sum(all_parts)) > cpus:
        raise UserError(
            f"the run asks for a CPU beside each of its {placed} GPUs and one more, and Ray has {cpus:g}; lower "
            "--actor.num_gpus_per_node or --vllm.num_engines, or start Ray with --num-cpus"
        )
    if not sharing:
        return
    names = " and ".join(repr(name) for name, of_one in parts.items() if any(of_one))
    room, copies = free_share(args), max(len(of_one) for of_one in parts.values())
    wanted = sum(max(of_one, default=0.0) for of_one in parts.values()) * math.ceil(copies / _size(args.actor))
    if wanted > room + 1e-6:
        first = next(name for name, of_one in parts.items() if any(of_one))
        share = f", and {room:.1f} of each is left to share" if room > 0 else ""
        raise UserError(
            f"reward {names} asks for {whole_gpus(all_parts)} GPU(s) beside the {placed} of the run's models, and Ray "
            f"has {gpus:g}{share}; leave a GPU free, lower --{first}.gpus (0 scores on the CPU) or --ext.reward_actors"
        )


def _size(group: SimpleNamespace) -> int:
    return group.num_nodes * group.num_gpus_per_node


def _engines_share(args: SimpleNamespace) -> bool:
    return args.train.colocate_all and not args.train.async_enable


def cluster_address() -> str | None:
    """The Ray that ``ray.init`` will join (``RAY_ADDRESS``, or ``ray start`` on this machine); None: it starts one."""
    if "://" in (given := os.environ.get("RAY_ADDRESS", "")):
        return given
    from ray._private.services import canonicalize_bootstrap_address

    return canonicalize_bootstrap_address(None)  # type: ignore[arg-type]


def knock(address: str) -> None:
    """Raises UserError where nobody listens; Ray itself would try for twenty minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except OSError as error:
        raise UserError(
            f"no Ray listens at {address} ({error.strerror or error}); start it, correct or unset RAY_ADDRESS, or run "
            "ray stop, which forgets a Ray that is gone"
        ) from error


def kv_bytes_per_token(config: Any, element_bytes: int = 2) -> int:
    """Bytes of keys and values of one token in all layers, from a transformers config."""
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * heads * head_dim * element_bytes
