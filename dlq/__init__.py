"""Dead letters: what died, why, and how it comes back."""
