"""What all tests share: how hypothesis searches.

Rule 1: a failing example is printed so that it can be run again.
Rule 2: CI searches the same examples in every run, so that a red run is the fault of its change.
Elsewhere each run searches new ones.
"""

import os

from hypothesis import settings

settings.register_profile("developer", deadline=None, print_blob=True)
settings.register_profile("ci", parent=settings.get_profile("developer"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") == "true" else "developer")
