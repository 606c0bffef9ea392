"""What the product says of itself: the metric catalogue, logs, health. It reads nothing and decides nothing."""
