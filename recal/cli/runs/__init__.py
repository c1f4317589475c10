"""Commands that evaluate targets and read runs."""
