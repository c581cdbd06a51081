"""Whether a posterior is right: one question, one file."""
