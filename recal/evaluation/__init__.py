"""From targets and a suite to a run."""
