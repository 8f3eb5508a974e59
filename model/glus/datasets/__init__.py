"""Data sets: public ones, our own sample folders, and clips made on the fly. Importing the package is light."""
