"""``python -m discovery.cli``: the command, where no script of its name is on the path."""

import sys

from discovery.cli import main

sys.exit(main())
