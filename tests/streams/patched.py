"""`python -m tests.streams.patched ARG...`: pytest in a process whose threads are greenlets, as in a gevent worker.

A process of its own, because patching cannot be undone and must come before the other imports.
"""

import sys

from gevent import monkey


def main() -> int:
    monkey.patch_all()
    import pytest

    # No pytest-timeout: its timer could be the tick that brings a lost wake-up in. test_stress.py limits us.
    return int(pytest.main(["--timeout=0", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=60", *sys.argv[1:]]))


if __name__ == "__main__":
    sys.exit(main())
