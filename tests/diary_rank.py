"""What one process of a distributed run does that breaks down, or not."""

from pathlib import Path

from demo_runs import demo_config, distributed, train


def run(work_dir: str, *options: str) -> None:
    """Options are KEY=NUMBER; ``fail_at`` is the iteration behind which it breaks down."""
    numbers = {key: int(value) for key, _, value in (option.partition('=') for option in options)}
    diary = dict(type='DiaryHook', fail_at=numbers.pop('fail_at', 9))
    hooks = [diary, dict(type='PFBHook', begin=1, end=1.0)]
    train(distributed(demo_config(Path(work_dir), custom_hooks=hooks, **numbers)))
