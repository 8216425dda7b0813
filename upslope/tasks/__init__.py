"""Problems with a truth and a level, the families that make them, and exact verifiers."""
