"""What a network does: its answers, its firing rates, its operations and energy, its numerical health."""
