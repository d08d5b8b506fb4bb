"""`python -m hf_lskd`: the command line, where its script is not on the path."""

import sys

from hf_lskd.cli import main

if __name__ == "__main__":
    sys.exit(main())
