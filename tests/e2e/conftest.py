"""What lies in `inside/` runs in a lab (test_lab.py starts one and pytest in it), never by itself."""

from __future__ import annotations

import os

collect_ignore = [] if "NICAGENT_LAB" in os.environ else ["inside"]
