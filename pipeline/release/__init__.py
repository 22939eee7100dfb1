"""A trained target, given to others: as files that need nothing of this project, and as a program for folders."""
