"""What one step of a cell is made of, over all its processes: said, and compared with what was asked for, before the first one."""

from typing import Any

from hf_lskd.errors import InputError


def check_batch(args: Any, processes: int) -> str:
    """The world size, the batch of a process and of a step, and the learning-rate rule, in words.

    `args` are a trainer's arguments, `processes` how many of them were asked for. Raises InputError when a step would take
    more or less than the recipe's batch on each of these: as many processes as that did not come up, or one process would
    split its batches over several GPUs (`torch.nn.DataParallel`), which multiplies them.
    """
    share = max(1, args.n_gpu)
    if args.world_size != processes or share != 1:
        raise InputError(
            f"{args.world_size} process{'es' * (args.world_size > 1)} with {share} GPU{'s' * (share > 1)} each",
            f"{processes} with at most one each: the recipe's batch is that of one",
            "Set CUDA_VISIBLE_DEVICES to one GPU, or take --launcher accelerate with recipes/accelerate/ddp_8.yaml.",
        )
    accumulated = args.gradient_accumulation_steps
    if (tokens := getattr(args, "max_tokens", None)) is not None:
        one, what = tokens, "tokens at most"
    else:
        one, what = args.per_device_train_batch_size, "examples"
    return (
        f"{processes} process{'es' * (processes > 1)} x {one} {what} x {accumulated} accumulated = "
        f"{processes * one * accumulated} a step; learning rate {args.learning_rate:g} as the recipe says it, "
        "whatever the number of processes"
    )
