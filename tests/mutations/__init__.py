"""Every guard has a test that goes red without it: `python -m tests.mutations` takes each away and looks."""
