"""Time to accuracy: networks that each implementation of the layer trains, from the same weights on the same data."""
