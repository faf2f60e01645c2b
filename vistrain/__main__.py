"""`python -m vistrain`, as torchrun starts it, and the command `vistrain`.

Until the command line is imported, Ctrl-C ends the process without a word, as it does any program that has not begun.
"""

import signal
import sys


def main() -> int:
    """Run the command of this process; see `vistrain.cli.main`."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from vistrain import cli

    signal.signal(signal.SIGINT, signal.default_int_handler)
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
