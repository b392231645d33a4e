"""One file a command; each also runs as `accelerate launch -m trl_unlearn.scripts.<name>`."""
