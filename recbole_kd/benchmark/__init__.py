"""Many runs from one file: what to run, in which processes, and what came of each."""
