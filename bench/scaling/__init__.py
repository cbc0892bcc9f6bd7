"""How a training step scales: a discrete-event model of it, held against measured runs, and carried to many GPUs."""
