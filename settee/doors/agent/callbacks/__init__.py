"""What a dispatcher is told, and how it gets there."""
