"""What one process of a distributed run does that breaks down."""

from pathlib import Path

from demo_runs import demo_config, distributed, train


def run(work_dir: str, *options: str) -> None:
    """Options are KEY=NUMBER."""
    hooks = [dict(type='DiaryHook', fail_at=9), dict(type='PFBHook', begin=1, end=1.0)]
    numbers = {key: int(value) for key, _, value in (option.partition('=') for option in options)}
    train(distributed(demo_config(Path(work_dir), custom_hooks=hooks, **numbers)))
