"""Quality, speed and memory of a world model's rollouts: quantised caches and MX linears against BF16."""
