r"""Print the path of a config file that comes with the package, for `accelerate launch`.

accelerate launch --config_file "$(python -m distill.launch ddp)" --num_processes 8 \
    -m edge.cli.main distill REC --recipe 600m --out RUN
"""

from __future__ import annotations

import sys
from pathlib import Path

from edge.errors import EdgeError, InputError, nearest_hint

_FOLDER = Path(__file__).parent


def config_path(name: str) -> Path:
    """Return the path of the config file called `name`. Raises InputError."""
    names = sorted(path.stem for path in _FOLDER.glob("*.yaml"))
    if name not in names:
        raise InputError(
            where="python -m distill.launch",
            expected=f"the name of one config file ({', '.join(names)})",
            found=f"'{name}'" if name else "none",
            do=nearest_hint(name, names),
        )
    return _FOLDER / f"{name}.yaml"


def main(words: list[str]) -> int:
    """Print one path. Returns the exit status."""
    try:
        print(config_path(" ".join(words)))  # noqa: T201 (it is what this module is for)
    except EdgeError as error:
        print(f"edge: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_status
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
