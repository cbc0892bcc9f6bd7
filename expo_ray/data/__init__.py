"""Problems, and the order in which training uses them."""
