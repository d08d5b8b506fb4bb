"""Ways in and out: what a finished model becomes outside of torch and of this library."""
