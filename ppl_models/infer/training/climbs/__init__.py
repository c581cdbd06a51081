"""The steps of expectation maximisation: what they go through, and how they go on."""
