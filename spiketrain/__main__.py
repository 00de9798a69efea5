"""`python -m spiketrain` is `spiketrain`."""

import sys

from spiketrain.cli import main

sys.exit(main())
