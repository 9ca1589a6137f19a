"""A proof in a file, and the program that checks it."""
