"""The comparison of mathematical answers."""
