"""``python -m steptape``: the ``steptape`` command."""

import sys

from steptape.cli import main

sys.exit(main())
