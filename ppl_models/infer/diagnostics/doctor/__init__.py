"""What `check` asks of programs: one kind of question, one file."""
