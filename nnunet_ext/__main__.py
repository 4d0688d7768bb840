"""Makes ``python -m nnunet_ext`` the same as ``nnunet-ext``."""

import sys

from nnunet_ext.cli import main

if __name__ == "__main__":
    sys.exit(main())
