"""Before the first step: what a run is asked for, and what it begins with."""
