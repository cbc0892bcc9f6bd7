"""Problems and the order in which training meets them."""
