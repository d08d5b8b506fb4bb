"""Models on their way out of the project and into it."""
