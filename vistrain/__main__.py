"""`python -m vistrain`, as torchrun starts it."""

import sys

from vistrain.cli import main

sys.exit(main())
