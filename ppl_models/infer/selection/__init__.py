"""Which of several models describes rows best."""
