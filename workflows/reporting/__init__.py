"""What people look at: the pages of a run and the pictures on them."""
