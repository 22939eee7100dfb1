"""A sweep seen from outside: another terminal, another machine, by its storage alone."""
