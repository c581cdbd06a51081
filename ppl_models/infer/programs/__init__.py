"""What a user's function is: a program, its rows, its sites, and the checks of a first run."""
