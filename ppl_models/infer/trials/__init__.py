"""What a number rests on, tried on the program itself before there is one."""
