"""``python -m bench``: :mod:`bench.command`, but ``run gpu`` by itself, since a GPU machine may lack click."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "kernels"))  # where gpulstm is not installed
    if sys.argv[1:3] == ["run", "gpu"]:
        from .gpu.command import main as gpu

        sys.exit(gpu(sys.argv[3:]))
    from .command import main as command

    command(prog_name="python -m bench")


if __name__ == "__main__":
    main()
