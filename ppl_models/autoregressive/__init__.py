"""Each feature given those before it."""
