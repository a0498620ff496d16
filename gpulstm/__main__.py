"""``python -m gpulstm``: the command line."""

from .cli import main

main()
