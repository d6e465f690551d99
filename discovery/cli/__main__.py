"""``python -m discovery.cli``: the command, where no script of its name is on the path."""

import sys

from discovery.cli import main

if __name__ == "__main__":  # a tool that imports every module starts no command
    sys.exit(main())
