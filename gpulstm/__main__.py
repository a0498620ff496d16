"""``python -m gpulstm``: the command line."""

from gpulstm_command import main

main()
